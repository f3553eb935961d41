"""`dvc repro` of a small project with bench.devices: [host, adb]: everything is real but the phone, which is AOSP's adbd with ARM code in qemu. Emulated: no time is a phone's."""

from __future__ import annotations

import pytest
import yaml
from test_end_to_end import STAGES, Project, ran

pytestmark = [pytest.mark.adbd, pytest.mark.full]


@pytest.fixture()
def repro(tmp_path_factory, phone, zig_cache, monkeypatch):
    """A project whose params.yaml names this machine and the only phone, compiled for by the pipeline; and what `dvc repro` said."""
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(zig_cache))
    project = Project(tmp_path_factory.mktemp("repro"))
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    params["probe"]["hosts"] = [phone.address]
    params["compile"]["targets"] = ["android-arm64"]
    params["bench"]["devices"] = ["host", "adb"]
    (project.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return project, project.run("dvc", "repro", seconds=1800)


def test_the_whole_pipeline_measures_here_and_on_the_phone(repro, phone):
    project, said = repro
    assert sorted(ran(said)) == sorted(STAGES) and "Running stage 'compile_for@android-arm64'" in said
    assert "compiling it from" not in said  # the stage before has done it
    record = project.json("bench/latency.json")
    (other,) = record["others"]
    assert record["device"]["kind"] == "host" and other["device"]["kind"] == "phone" and other["device"]["emulated"]
    for made in (record, other):
        assert made["correctness"]["ok"] and len(made["samples_ms"]) == len(made["dense"]["samples_ms"]) == 20
    assert "adb is EMULATED, not a phone" in said
    page = (project.folder / "report.html").read_text()
    assert "EMULATED, not a phone" in page and other["device"]["model"] in page
    table = project.run("npas", "report")
    print(said, table, sep="\n")
    assert "(host)" in table and "(phone)" in table and "EMULATED, not a phone" in table
    assert ran(project.run("dvc", "repro")) == ["probe"]  # nothing has changed: nothing is measured again
