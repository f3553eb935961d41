"""Tuning: signatures, the search on a cost that is known, the journal after a kill, whose choice counts, and tuned kernels against PyTorch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kernel_kit import assert_equal, inputs, randomised
from torch import nn

from stages.compiler import compile_model, load_model, select
from stages.compiler.api import prepare, simplified
from stages.compiler.ir import Layout, Step
from stages.compiler.kernels.kernel import Placed
from stages.compiler.target import resolve
from stages.compiler.tuning import arrangements, database, networks, tuner
from stages.compiler.tuning.harness import Times
from stages.compiler.tuning.request import Request
from stages.compiler.tuning.search import explore
from stages.compiler.tuning.signature import density, network, signature
from stages.devices.correct import Expected
from stages.devices.timing import TimingProtocol
from stages.graph import trace
from stages.progress import Silent
from stages.schemes import Scheme, prune_, uniform_scheme

TARGET = resolve("host")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NPAS_CACHE", str(tmp_path))
    return tmp_path


def layer(filters: int = 32, channels: int = 16, kernel: int = 1, seed: int = 0) -> Placed:
    """A convolution of 12x12 pixels where it lies."""
    generator = np.random.default_rng(seed)
    border = (kernel // 2,) * 4
    weight = generator.standard_normal((filters, channels, kernel, kernel), dtype=np.float32)
    attrs = {"stride": (1, 1), "padding": (kernel // 2, kernel // 2), "dilation": (1, 1)}
    step = Step("conv", "conv", ("x",), "y", attrs, weight, np.zeros(filters, np.float32), (("relu",),))
    return Placed(step, (Layout((1, channels, 12, 12), channels, border),), Layout((1, filters, 12, 12), filters))


def test_a_signature_reads_well_and_tells_densities_apart() -> None:
    assert signature(layer(kernel=3)) == "conv 16>32 3x3 @1x12x12 pitch 16>32 relu dense"
    weight = np.ones((32, 64), np.float32)
    weight.reshape(4, 8, 64)[:, :, ::2] = 0
    weight.reshape(4, 8, 64)[1, :, 1::4] = 0
    assert density(weight) == "g8 1/2"
    weight[3, 1] = 0
    assert density(weight) == "g1 1/2"
    assert density(np.ones((3, 5), np.float32)) == "dense"


@dataclass(frozen=True)
class Point:
    x: int
    y: int
    z: bool


def bowl(p: Point) -> float:
    return 1 + (p.x - 17) ** 2 + (p.y - 5) ** 2 + (0 if p.z else 3)


def test_few_candidates_are_all_measured() -> None:
    points = [Point(x, y, z) for x in range(15, 20) for y in (4, 5) for z in (True, False)]
    *_, costs = explore(points, lambda batch: {p: bowl(p) for p in batch}, {})
    assert set(costs) == set(points)


def test_genetic_search_finds_the_optimum_of_many_and_repeats() -> None:
    points = [Point(x, y, z) for x in range(20) for y in range(20) for z in (True, False)]  # 800, ranked by a model that is wrong
    ranked = sorted(points, key=lambda p: (p.x - 12) ** 2 + (p.y - 9) ** 2)
    runs = [list(explore(ranked, lambda batch: {p: bowl(p) for p in batch}, {}, most=200)) for _ in range(2)]
    best = min(runs[0][-1], key=lambda p: runs[0][-1][p])
    assert best == Point(17, 5, True) and len(runs[0][-1]) == 200
    assert runs[0] == runs[1]


def test_what_was_measured_is_not_measured_again() -> None:
    points = [Point(x, 5, True) for x in range(30)]
    asked: list[Point] = []

    def measure(batch: list[Point]) -> dict[Point, float]:
        asked.extend(batch)
        return {p: bowl(p) for p in batch}

    *_, costs = explore(points, measure, {p: bowl(p) for p in points[5:]})  # type: ignore[arg-type]
    assert sorted(asked, key=lambda p: p.x) == points[:5] and set(costs) == set(points)


def test_the_journal_survives_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    code = """
import os, signal, sys
from pathlib import Path
from stages.compiler.tuning import database
database.append(Path(sys.argv[1]), {"kind": "point", "signature": "s", "choice": {"rule": "gather", "lanes": 8}, "cost": 0.5})
os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND), b'{"kind": "verdict", "signa')
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(file)], check=False, cwd=Path(__file__).resolve().parents[2])
    assert killed.returncode == -signal.SIGKILL
    assert database.read(file).points == {"s": {database.key({"lanes": 8, "rule": "gather"}): 0.5}}
    database.append(file, {"kind": "verdict", "signature": "s", "choice": {"rule": "gather", "lanes": 16}})
    assert database.read(file).verdicts == {"s": {"rule": "gather", "lanes": 16}}


def verdict(placed: Placed, choice: object) -> None:
    name = signature(placed)
    database.append(database.path(TARGET), {"kind": "verdict", "signature": name, "choice": database.plain("gather", choice)})


def test_own_measurements_outrank_shipped_ones_and_these_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed = layer()
    options = [choice for found in select.choices(placed, TARGET) for _, choice in found if select.rule_of(choice) == "gather"]
    model = select.untuned(placed, TARGET)
    one, other = [c for c in options if c != model.choice][:2]
    layouts = {"x": placed.inputs[0], "y": placed.output}

    def selected() -> tuple[object, str]:
        kernel = select.select(placed.step, layouts, TARGET)
        return kernel.choice, kernel.tuned

    assert selected() == (model.choice, "model") and model.tuned == "model"
    monkeypatch.setattr(database, "_DEFAULTS", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    row = {"kind": "verdict", "signature": signature(placed), "choice": database.plain("gather", one)}
    database.shipped_path(TARGET).write_text(json.dumps(row) + "\n")
    assert selected() == (one, "shipped")
    verdict(placed, other)
    assert selected() == (other, "measured here")


def test_a_choice_that_no_rule_knows_is_left_to_the_model() -> None:
    placed = layer()
    database.append(database.path(TARGET), {"kind": "verdict", "signature": signature(placed), "choice": {"rule": "gather", "unknown": 1}})
    kernel = select.select(placed.step, {"x": placed.inputs[0], "y": placed.output}, TARGET)
    assert kernel.tuned == "model"


def test_a_rule_that_nobody_tunes_keeps_its_steps() -> None:
    """Linear layers of one image stream their weights (matvec), whatever was measured of the gather kernel before."""
    generator = np.random.default_rng(0)
    step = Step(
        "fc", "conv", ("x",), "y", {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)},
        generator.standard_normal((64, 32, 1, 1), dtype=np.float32), np.zeros(64, np.float32),
    )  # fmt: skip
    placed = Placed(step, (Layout((1, 32, 1, 1), 32),), Layout((1, 64, 1, 1), 64))
    (choice, *_) = (choice for found in select.choices(placed, TARGET) for _, choice in found)
    verdict(placed, choice)
    assert select.select(step, {"x": placed.inputs[0], "y": placed.output}, TARGET).rule == "matvec"


def test_a_verdict_older_than_a_field_has_its_default() -> None:
    plain = {"rule": "winograd", "rows": 4, "cols": 4, "tiles": 6, "lanes": 8, "vectors": 2}
    choice = select.decode(plain)
    assert choice is not None and (choice.chunk, choice.beside) == (0, 1)
    assert select.decode({**plain, "spirals": 3}) is None
    assert select.decode({name: value for name, value in plain.items() if name != "lanes"}) is None


def test_the_shipped_files_are_verdicts_that_this_version_understands() -> None:
    files = sorted((Path(database.__file__).parent / "shipped").glob("*.jsonl"))
    assert files
    for file in files:
        head, *rows = (json.loads(line) for line in file.read_text().splitlines())
        assert head["kind"] == "device" and head["generation"] == database.GENERATION
        verdicts = [row for row in rows if row["kind"] == "verdict"]
        assert verdicts and all(select.decode(row["choice"]) is not None for row in verdicts)
        assert {row["network"] for row in rows if row["kind"] != "verdict"} == set(database.read(file).planes)


def test_the_same_choice_has_the_same_code_wherever_it_comes_from() -> None:
    from stages.compiler.cache import symbol

    placed = layer()
    model = select.untuned(placed, TARGET)
    assert symbol(select.chosen(placed, model.choice, TARGET), TARGET) == symbol(model, TARGET)


@pytest.mark.parametrize("kernel", [1, 3])
def test_tuning_measures_right_candidates_and_goes_on_after_an_interruption(kernel: int) -> None:
    placed = layer(kernel=kernel)
    answers = iter([True, False])
    assert tuner.tune_layer(placed, TARGET, lambda: next(answers), most=14) is None  # interrupted after the first batch
    points = database.read(database.path(TARGET)).points[str(signature(placed))]
    assert 0 < len(points) < 14 and all(0.1 < cost < 10 for cost in points.values())  # none is wrong
    found = tuner.tune_layer(placed, TARGET, lambda: True, most=14)
    assert found is not None and found.measured >= len(points) and found.gain >= 1
    rows = [json.loads(line) for line in database.path(TARGET).read_text().splitlines()]
    choices = [database.key(row["choice"]) for row in rows if row["kind"] == "point"]
    assert len(choices) == len(set(choices)) == found.measured  # none twice


def test_a_tuned_network_is_right_and_compiles_to_the_same_bytes() -> None:
    module = randomised(nn.Sequential(nn.Conv2d(3, 20, 3, 2, 1), nn.ReLU(), nn.Conv2d(20, 24, 1)))
    x = torch.zeros(1, 3, 20, 20)
    before = compile_model(module, x)
    assert {row.get("tuned") for row in before.manifest["kernels"]} == {None, "model"}
    verdicts = networks.tune(module, x, minutes=1, most=3)
    assert {v.measured for v in verdicts} == {3}
    models = [compile_model(module, x) for _ in range(2)]
    assert {row.get("tuned") for row in models[0].manifest["kernels"]} == {None, "measured here"}
    assert models[0].path.read_bytes() == models[1].path.read_bytes()
    assert_equal(models[0], module, inputs(1, 3, 20, 20))
    assert networks.tune(module, x, minutes=1, most=3) == []  # nothing is left to do


def test_a_machine_of_two_speeds_does_not_decide() -> None:
    """One lucky round of the candidate, all others equal."""
    reference, lucky = Times((8.0,) * 9, 0.0), Times((4.0, *(8.0,) * 8), 0.0)
    assert lucky.ratio(reference) == 1.0
    assert Times((7.2,) * 9, 0.0).ratio(reference) == pytest.approx(0.9)


def test_layers_on_planes_are_tuned_too() -> None:
    module = randomised(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 40, 1)))
    x = torch.zeros(1, 32, 32, 32)
    scheme = uniform_scheme(trace(module, x), "block-punched", 6.0, 8)
    prune_(module, scheme)
    networks.tune(module, x, scheme, minutes=1, most=4)
    model = compile_model(module, x, scheme)
    assert {(row["kernel"], row["tuned"]) for row in model.manifest["kernels"] if "tuned" in row} == {("planar_conv", "measured here")}
    assert_equal(model, module, inputs(1, 32, 32, 32))
    points = [json.loads(line) for line in database.path(TARGET).read_text().splitlines()]
    assert all(row["cost"] < 10 for row in points if row["kind"] == "point")  # none is wrong


def two_sizes(rate: float = 3.0) -> tuple[nn.Module, torch.Tensor, Scheme]:
    """A network with sparse convolutions at two resolutions, so that four layouts are possible."""
    module = randomised(nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(32, 48, 3, padding=1)))
    x = torch.zeros(1, 16, 32, 32)
    scheme = uniform_scheme(trace(module, x), "block-punched", rate, 8)
    prune_(module, scheme)
    return module, x, scheme


@pytest.mark.parametrize("fastest", range(4))
def test_the_fastest_layout_wins_and_is_used_from_then_on(fastest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, scheme = two_sizes()
    monkeypatch.setattr(arrangements, "NEAR", 1e9)  # all four are candidates
    sizes: list[list[list[int]]] = []

    class Machine:
        def measure(self, models: list[Path], values: list[np.ndarray], protocol: TimingProtocol, expected: Expected) -> SimpleNamespace:
            loaded = [load_model(path) for path in models]
            if not sizes:
                sizes.extend(model.manifest["layout"]["planes"] for model in loaded)
            samples = [(1.0 if model.manifest["layout"]["planes"] == sizes[fastest] else 2.0,) * protocol.runs for model in loaded]
            expected.check([model(*values) for model in loaded])
            return SimpleNamespace(samples_ms=samples)

    monkeypatch.setattr(arrangements, "HostDevice", Machine)
    verdicts = arrangements.tune_arrangements([Request(module, x, scheme)], TARGET, 1.0, Silent())
    assert [(v.gain, v.measured) for v in verdicts] == [(2.0 if fastest else 1.0, 4)] and len(sizes) == 4
    model = compile_model(module, x, scheme)
    assert model.manifest["layout"] == {"planes": sizes[fastest], "chosen": "measured here"}
    assert_equal(model, module, inputs(1, 16, 32, 32))
    assert arrangements.tune_arrangements([Request(module, x, scheme)], TARGET, 1.0, Silent()) == []  # nothing is left to do


def test_layouts_are_timed_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, scheme = two_sizes()
    monkeypatch.setattr(arrangements, "NEAR", 1e9)
    assert compile_model(module, x, scheme).manifest["layout"]["chosen"] == "model"
    (verdict,) = arrangements.tune_arrangements([Request(module, x, scheme)], TARGET, 1.0, Silent())
    assert verdict.measured == 4 and 1 <= verdict.gain < 10


def test_a_network_is_known_again_by_shapes_and_densities() -> None:
    def name(module: nn.Module, x: torch.Tensor, scheme: Scheme) -> str:
        return network(simplified(*prepare(module, x, scheme, None), TARGET))

    module, x, scheme = two_sizes()
    assert name(module, x, scheme) == name(*two_sizes()) and name(module, x, scheme).startswith("1x16x32x32 ")
    assert len({name(module, x, scheme), name(*two_sizes(1.2)), name(module, torch.zeros(1, 16, 40, 40), scheme)}) == 3


def test_no_time_means_no_verdicts() -> None:
    assert networks.tune(nn.Sequential(nn.Conv2d(3, 8, 1)).eval(), torch.zeros(1, 3, 8, 8), minutes=0) == []
