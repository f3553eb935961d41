"""The job protocol on a phone that is a folder: what is measured, what a fault costs, what stays behind (nothing)."""

from __future__ import annotations

import numpy as np
import pytest
from phone_kit import FolderPhone, c_source, linked

from stages.devices import TimingProtocol
from stages.devices.correct import Expected
from stages.errors import WrongOutput

QUICK = TimingProtocol(runs=12, warmup=2, warmup_seconds=0.0, profile_runs=3)
X = np.array([[1.0, -2.0, 0.5, 8.0]], dtype=np.float32)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return linked(tmp_path_factory.mktemp("linked"), model=c_source(2.0, ms=0.2), dense=c_source(3.0, ms=1.0))


@pytest.fixture()
def phone(tmp_path):
    return FolderPhone(tmp_path / "phone")


def expected(*factors, names=("pruned", "dense")):
    return Expected(names, [(np.float32(f) * X,) for f in factors], 1e-3)


def test_a_measurement_brings_everything_and_leaves_nothing(phone, networks):
    measured = phone.device().measure(networks, [X], QUICK, expected(2, 3))
    assert [len(s) for s in measured.samples_ms] == [12, 12]
    assert min(measured.samples_ms[0]) >= 0.2 and min(measured.samples_ms[1]) >= 1.0
    np.testing.assert_array_equal(measured.outputs[1][0], 3 * X)
    assert measured.manifests[0]["kernels"][0]["layer"] == "scale"
    assert [len(ms) for ms in measured.kernel_ms] == [2, 2]
    assert measured.conditions.sdk == 31 and measured.conditions.link == {"losses": 0, "reconnects": 0}
    assert measured.valid, measured.reasons
    assert phone.jobs() == []


def test_wrong_outputs_are_never_timed(phone, networks):
    with pytest.raises(WrongOutput, match="dense"):
        phone.device().measure(networks, [X], QUICK, expected(2, 4))
    assert phone.jobs() == []
