"""Several tasks in one network: earlier ones keep every bit, parts are disjoint, masks hold, interrupted trainings end the same, and what can't be learnt is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from training_kit import Killer

from stages.config import Lifelong
from stages.config import Task as TaskConfig
from stages.errors import UsageError
from stages.graph import trace
from stages.graph.rewrite import find_replacements
from stages.lifelong import Commons, Part, check_fits, found, learn
from stages.lifelong.commons import FREE, scheme_of, spread
from stages.lifelong.found import head_tensors
from stages.lifelong.gates import Gates
from stages.lifelong.network import loaded, network_of, replaced
from stages.lifelong.stake import Stake, _counts, stakes
from stages.progress import Silent
from stages.schemes import DENSE, LayerScheme, check_zeros
from stages.schemes.units import Units
from stages.tasks import Task, make_task

SETTINGS = Lifelong(learn_epochs=1, epochs=2, tasks=3, reuse=0.5)
SILENT = Silent()
BASE = TaskConfig(model="npas_tiny", image_size=8, train_limit=64, batch_size=16, threads=1)
NAMES = ("low", "high", "turned")


def digits(wanted: range, turns: int) -> dict[str, Any]:
    images, labels = load_digits(return_X_y=True)
    chosen = (labels >= wanted.start) & (labels < wanted.stop)
    pixels = torch.rot90(torch.from_numpy(images[chosen]).float().view(-1, 1, 8, 8) / 16, turns, (2, 3))
    targets = torch.from_numpy(labels[chosen]).long() - wanted.start
    return {name: (pixels[part], targets[part]) for name, part in (("train", slice(0, 100)), ("val", slice(100, 150)), ("test", slice(150, 200)))}


def low() -> dict[str, Any]:
    return digits(range(5), 0)


def high() -> dict[str, Any]:
    return digits(range(5, 10), 0)


def turned() -> dict[str, Any]:
    return digits(range(10), 1)


@cache
def task(name: str) -> Task:
    return make_task(replace(BASE, data=f"test_lifelong:{name}"))


@cache
def empty() -> Commons:
    module = task("low").model().eval()
    graph = trace(module, task("low").example())
    return found(module, graph, "npas_tiny", 8, [r.to_json() for r in find_replacements(graph)])


def taught(commons: Commons, name: str, folder: Path, settings: Lifelong = SETTINGS, progress: Silent = SILENT) -> Commons:
    return learn(commons, name, task(name), replaced(task(name).model(), commons), settings, folder, progress)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[Commons]:
    """The network after none, one, two and three tasks."""
    found = [empty()]
    for name in NAMES:
        found.append(taught(found[-1], name, tmp_path_factory.mktemp(name)))
    return found


def network(commons: Commons, name: str) -> nn.Module:
    return loaded(commons, name, task(name).model())


def test_earlier_tasks_keep_every_bit(steps: list[Commons]) -> None:
    x = task("low").example(4)
    for done, name in enumerate(NAMES, 1):
        first, last = network(steps[done], name), network(steps[3], name)
        for key, tensor in first.state_dict().items():
            assert torch.equal(tensor.view(-1).view(torch.int32), last.state_dict()[key].view(-1).view(torch.int32)), key  # -0 isn't 0 here
        assert torch.equal(first(x), last(x)) and first(x).std() > 0
        assert steps[done].digest(name) == steps[3].digest(name)
    assert len({steps[3].digest(name) for name in NAMES}) == 3


def test_parts_are_disjoint_and_leave_nothing_over(steps: list[Commons]) -> None:
    for done, commons in enumerate(steps):
        for path, part in commons.parts.items():
            owned = [spread(part, part.owners == number) for number in (FREE, 1, 2, 3)]
            assert torch.equal(torch.stack(owned).sum(0), torch.ones_like(part.values, dtype=torch.int64)), path
            counts = torch.stack([(part.owners == number).sum(1) for number in (FREE, 1, 2, 3)])
            assert (counts == counts[:, :1]).all(), "every group has equally many"
            assert not part.values[owned[0]].any() and (counts[done + 1 :] == 0).all()
            if done:
                assert part.values[owned[done]].any()
    assert steps[3].weights(FREE) == 0
    assert sum(steps[3].weights(number) for number in (1, 2, 3)) == steps[3].size
    assert all(abs(steps[3].weights(number) / steps[3].size - 1 / 3) < 0.05 for number in (1, 2, 3))


def test_a_task_uses_its_own_part_and_what_its_mask_grants_of_earlier_ones(steps: list[Commons]) -> None:
    last = steps[3]
    for number, name in enumerate(NAMES, 1):
        learnt, module = last[name], network(last, name)
        check_zeros(module, last.scheme(name), last.masks(name))
        for path, part in last.parts.items():
            used, earlier = learnt.used[path], (part.owners > FREE) & (part.owners < number)
            assert used[part.owners == number].all() and not used[part.owners > number].any()
            assert ((used & earlier).sum(1) == round(0.5 * int(earlier[0].sum()))).all()
            shared = spread(part, used & earlier)
            assert torch.equal(module.get_parameter(f"{path}.weight")[shared], part.values[shared])
            assert last.scheme(name)[path] == scheme_of(part.layer, used)
    assert last["turned"].tensors["classifier.weight"].shape[0] == 10 and last["low"].tensors["classifier.weight"].shape[0] == 5
    assert {"stem.1.running_mean", "blocks.1.layers.1.0.weight"} <= set(last["low"].tensors), "batch norms and depthwise layers are a task's own"


def test_the_file_holds_all_of_it(steps: list[Commons]) -> None:
    told = steps[3].told("low", {"classes": list("01234"), "task": vars(replace(BASE, data="gone"))})
    again = Commons.from_checkpoint(told.to_checkpoint())
    assert [again.digest(name) for name in NAMES] == [steps[3].digest(name) for name in NAMES]
    x = task("low").example()
    assert torch.equal(network_of(again, "low")(x), network(steps[3], "low")(x)), "the network needs no data"


@pytest.mark.parametrize("epoch", [1, 2, 3])  # learning, the ramp, the retraining
def test_an_interrupted_training_ends_the_same(epoch: int, steps: list[Commons], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        taught(steps[1], "high", tmp_path, progress=Killer(epoch))
    again = taught(steps[1], "high", tmp_path)
    assert again.digest("high") == steps[2].digest("high") and again.digest("low") == steps[2].digest("low")


@pytest.mark.parametrize("reuse", [0.0, 1.0])
def test_nothing_or_everything_shared(reuse: float, steps: list[Commons], tmp_path: Path) -> None:
    made = taught(steps[1], "high", tmp_path, replace(SETTINGS, reuse=reuse, tasks=2))
    for path, part in made.parts.items():
        assert torch.equal(made["high"].used[path], (part.owners == 2) | ((part.owners == 1) & bool(reuse)))
    assert set(made.scheme("high").layers.values()) == {DENSE} if reuse else DENSE not in made.scheme("high").layers.values()
    assert made.digest("low") == steps[1].digest("low")


def test_the_gates_follow_the_gradient_that_autograd_finds() -> None:
    torch.manual_seed(0)
    shape = torch.Size((12, 3, 3, 3))  # the last group of 8 has 4 filters
    units, taken = Units({"w": shape}, 27, 8), torch.rand(2, 27).argsort(1) < 10
    where = units.spread(taken, False)["w"]
    values = torch.randn(shape) * where
    gates = Gates({"w": Stake(units, taken, values, where, 5, 6)})
    m = torch.ones(2, 27, dtype=torch.float64, requires_grad=True)
    weight = (units.spread(m, 0)["w"] * values).float()
    leaf = weight.detach().requires_grad_()
    x, target = torch.randn(4, 3, 6, 6), torch.randn(4, 12, 4, 4)
    nn.functional.mse_loss(nn.functional.conv2d(x, leaf), target).backward()
    nn.functional.mse_loss(nn.functional.conv2d(x, units.spread(m, 0)["w"].float() * values), target).backward()
    gates.move(lambda name: leaf.grad, 0.01)
    expected = m.grad * taken / (m.grad[taken].square().mean().sqrt())
    assert torch.allclose(gates.velocity["w"], 0.1 * expected, rtol=1e-4, atol=1e-6)
    assert torch.allclose(gates.m["w"], (taken.double() - 0.001 * expected).clamp(0, 1) * taken, atol=1e-6)


def test_the_gates_drop_what_does_harm() -> None:
    """Minimise |m F - T|^2 where T lacks some of F's units: ADMM ends on exactly the others."""
    torch.manual_seed(0)
    units, taken = Units({"w": torch.Size((8, 20))}, 20, 8), torch.ones(1, 20, dtype=torch.bool)
    values = torch.randn(8, 20)
    good = torch.zeros(1, 20, dtype=torch.bool)
    good[0, torch.randperm(20)[:12]] = True
    target = values * units.spread(good, False)["w"]
    gates, live = Gates({"w": Stake(units, taken, values, taken.expand(8, 20), 0, 12)}), values.clone()
    for step in range(60):
        gates.move(lambda name: live - target, 0.02)
        gates.attract(0.01)
        if step % 10 == 9:
            gates.update()
        gates.put({"w": live})
    gates.harden()
    assert torch.equal(gates.m["w"].bool(), good)
    gates.put({"w": live})
    assert torch.equal(live, target)


@given(st.integers(8, 300), st.integers(1, 8), st.sampled_from([0.0, 0.5, 0.9]))
def test_equal_parts_use_a_layer_up(units: int, tasks: int, reuse: float) -> None:
    owners, taken = torch.zeros(1, units, dtype=torch.int16), []
    for done in range(tasks):
        part = Part(LayerScheme("keep", "block-based", 1.0, 8), torch.zeros(8, units), owners)
        own, reused = _counts(part, done, Lifelong(tasks=tasks, reuse=reuse))
        assert own >= 1 and reused == round(reuse * sum(taken)) and own + reused <= units
        owners[0, sum(taken) : sum(taken) + own] = done + 1
        taken.append(own)
    assert sum(taken) == units and max(taken) - min(taken) <= 1


def refused(call: Any, *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert caught.value.exit_code == 2 and caught.value.hint and all(word in f"{caught.value.message} {caught.value.hint}" for word in words), caught.value.message


def test_what_finds_no_room_is_refused(steps: list[Commons]) -> None:
    refused(lambda: stakes(steps[3], SETTINGS), "planned for 3 tasks and holds 3", "0 % of its weights are free", "another network")
    refused(lambda: stakes(steps[1], replace(SETTINGS, tasks=1)), "67 %", "Raise lifelong.tasks")
    refused(lambda: stakes(steps[2], replace(SETTINGS, share=0.5)), "50 %", "only 33 % are free", "lifelong.share")
    full = replace(SETTINGS, tasks=4, reuse=0.0)
    refused(lambda: stakes(steps[3], full), "is free", "lifelong.reuse")


def test_what_does_not_belong_is_refused(steps: list[Commons]) -> None:
    commons, fitting = steps[2], task("turned").model()
    check_fits(commons, fitting, (3, 8, 8))
    refused(lambda: check_fits(commons, fitting, (3, 16, 16)), "3x8x8", "3x16x16", "task.image_size")
    other = make_task(replace(BASE, model="npas_net", data="test_lifelong:turned"))
    refused(lambda: check_fits(commons, other.model(), (3, 8, 8)), "task.model", "npas_tiny")
    refused(lambda: commons["lows"], "No task 'lows'", "Did you mean 'low'?")
    refused(lambda: empty()["low"], "No task 'low'", "npas lifelong --name")
    lonely = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    refused(lambda: found(lonely, trace(lonely.eval(), torch.zeros(1, 3, 8, 8)), "lonely", 8), "'lonely' has no layer")


def test_heads_are_found_behind_norms_and_poolings() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    names: set[str] = set(head_tensors(trace(module, torch.zeros(1, 3, 8, 8))))
    assert names == {"3.weight", "3.bias", "4.weight", "4.bias", "4.running_mean", "4.running_var"}


def test_free_weights_begin_where_the_start_has_them(steps: list[Commons]) -> None:
    """The free part of a later task starts from the network that is handed in, its taken part from the earlier tasks'."""
    from stages.lifelong.claim import Beside

    start = replaced(task("high").model(), steps[1])
    before: dict[str, Tensor] = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    Beside(start, stakes(steps[1], SETTINGS))
    for path, part in steps[1].parts.items():
        expected = torch.where(spread(part, part.owners == FREE), before[f"{path}.weight"], part.values)
        assert torch.equal(start.get_parameter(f"{path}.weight"), expected)
