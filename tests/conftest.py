"""What every test shares: one thread, caches and state of its own (never the user's), and an empty project folder on request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the same sums on every machine

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("NPAS_STATE", raising=False)
        patch.setenv("NO_COLOR", "1")
        patch.setenv("ANDROID_ADB_SERVER_PORT", "1")  # where no adb server runs: phones of whoever runs the tests are left alone
        yield


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder as the current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
