"""Reading and writing artifacts: whole or not at all, and refused with a command to type when missing, damaged or foreign."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import artifacts
from stages.artifacts import COLUMNS, SCHEMAS, plain, read_json, save_checkpoint, state_dir, state_key, write_atomic, write_csv, write_json
from stages.config import Bench, SearchScheme
from stages.errors import ArtifactError, NpasError

pytestmark = pytest.mark.usefixtures("project")


def test_json_comes_back_with_its_schema() -> None:
    write_json("bench/latency.json", {"median": 1.5})
    assert read_json("bench/latency.json") == {"schema": SCHEMAS["bench/latency.json"], "median": 1.5}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32(1.0)])
def test_numbers_that_are_not_plain_and_finite_are_errors_at_the_writer(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_json("bench/latency.json", {"median": value})
    assert not Path("bench/latency.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"{", "is damaged"), (b"[]", "is damaged"), (b"\xff", "is damaged"), (b"", "is damaged"), (b"{}", "has schema None"), (b'{"schema": "npas-scheme/2"}', "has schema 'npas-scheme/2'")],
)
def test_unusable_json_names_the_command_that_makes_it(content: bytes | None, message: str) -> None:
    path = Path("search_scheme/scheme.json")
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        read_json(path)
    assert message in caught.value.message and "npas search-scheme" in caught.value.hint and caught.value.exit_code == 2


def test_checkpoints_come_back_and_unusable_ones_are_refused() -> None:
    path = Path("pretrain/model.pt")
    artifacts.save_checkpoint(path, {"state_dict": {"w": torch.ones(2)}})
    assert torch.equal(artifacts.load_checkpoint(path)["state_dict"]["w"], torch.ones(2))
    whole = path.read_bytes()
    other: dict[str, object] = {"format": "npas-model/9"}
    for damage, message in ((lambda: path.write_bytes(whole[: len(whole) // 2]), "not a readable"), (lambda: path.write_bytes(b""), "not a readable"), (lambda: torch.save(other, path), "npas-model/9"), (path.unlink, "does not exist")):
        damage()
        with pytest.raises(ArtifactError, match=message) as caught:
            artifacts.load_checkpoint(path)
        assert "npas pretrain" in caught.value.hint


def test_the_same_checkpoint_is_the_same_bytes() -> None:
    """DVC compares hashes: were a name or a time inside, an unchanged network would re-run everything after it."""
    first, second = ((artifacts.save_checkpoint("pretrain/model.pt", {"state_dict": {"w": torch.ones(2)}}), artifacts.sha256("pretrain/model.pt"))[1] for _ in range(2))
    assert first == second


def test_a_checkpoint_that_would_run_code_is_refused() -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, ("ran",))

    Path("pretrain").mkdir()
    torch.save({"format": "npas-model/1", "x": Evil()}, "pretrain/model.pt")
    with pytest.raises(ArtifactError, match="not a readable"):
        artifacts.load_checkpoint("pretrain/model.pt")
    assert not Path("ran").exists()


def test_a_failed_write_leaves_the_old_file_and_no_litter() -> None:
    write_json("bench/latency.json", {"run": 1})

    def full(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(NpasError, match="Can't write bench/latency.json: No space left on device"):
        write_atomic("bench/latency.json", full)
    assert read_json("bench/latency.json")["run"] == 1
    assert os.listdir("bench") == ["latency.json"]


def test_a_folder_that_can_not_be_made_is_one_sentence() -> None:
    Path("bench").write_text("a file where the folder should be")
    with pytest.raises(NpasError, match="Can't write bench/latency.json"):
        write_json("bench/latency.json", {})


def test_a_write_replaces_a_link_and_leaves_what_it_pointed_to() -> None:
    """With `cache.type symlink` an output is a link into DVC's cache, which must not change."""
    Path("cached").write_text("cached")
    Path("out").symlink_to("cached")
    write_atomic("out", lambda path: path.write_text("new") and None)
    assert Path("cached").read_text() == "cached" and Path("out").read_text() == "new" and not Path("out").is_symlink()


def test_written_files_have_the_usual_permissions() -> None:
    old = os.umask(0o022)
    try:
        assert write_json("x.json", {}).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)


def test_tables_have_the_columns_that_plots_need_first() -> None:
    write_csv("pretrain/history.csv", [{"lr": 0.1, "top1": None, "loss": np.float32(0.5), "epoch": 1}])
    with open("pretrain/history.csv", newline="") as file:
        reader = csv.DictReader(file)
        assert list(reader) == [{"epoch": "1", "loss": "0.5", "top1": "", "lr": "0.1"}] and tuple(reader.fieldnames or ())[:3] == COLUMNS["pretrain/history.csv"]
    with pytest.raises(KeyError, match="top1"):
        write_csv("pretrain/history.csv", [{"epoch": 1, "loss": 0.5}])
    assert write_csv("bench/layers.csv", []).read_text() == "layer,kernel,ms,dense_ms\n"


def test_plain_makes_anything_json() -> None:
    value = {"a": (np.int64(1), Path("x"), Bench(cpus=(0,)), torch.tensor(2.0))}
    assert json.loads(json.dumps(plain(value)))["a"][:2] == [1, "x"]
    assert plain(value)["a"][2]["cpus"] == [0] and plain(value)["a"][3] == 2.0


def test_the_state_key_forgets_how_long_and_nothing_else() -> None:
    assert state_key(SearchScheme(trials=10), "code") == state_key(SearchScheme(trials=99), "code")
    assert len({state_key(SearchScheme(), "code"), state_key(SearchScheme(seed=1), "code"), state_key(SearchScheme(), "other")}) == 3


def test_the_state_folder_can_be_moved_and_a_folder_that_can_not_be_made_is_one_sentence(monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    assert state_dir("search_scheme", "k") == project / ".npas/state/search_scheme/k"
    monkeypatch.setenv("NPAS_STATE", str(project / "elsewhere"))
    assert state_dir("search_scheme", "k") == project / "elsewhere/search_scheme/k"
    (project / "file").write_text("")
    monkeypatch.setenv("NPAS_STATE", str(project / "file"))
    with pytest.raises(NpasError, match="Can't make the folder"):
        state_dir("search_scheme", "k")


def test_a_full_disk_is_said_for_checkpoints_too(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save writing to a full disk raises its own kind of error; ours must be the one that a person can read."""
    save_checkpoint("pretrain/model.pt", {"state_dict": {"a": torch.ones(2)}})
    before = Path("pretrain/model.pt").read_bytes()
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        real(path, bytes(data)[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(NpasError, match="No space left"):
        save_checkpoint("pretrain/model.pt", {"state_dict": {"a": torch.zeros(2)}})
    assert Path("pretrain/model.pt").read_bytes() == before
    assert [p.name for p in Path("pretrain").iterdir()] == ["model.pt"]
