"""Where the data lie, and where what was decoded from them is kept. Imports stages.errors only of npas."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stages.errors import UsageError


def place(*parts: str) -> Path:
    """A file or folder below $NPAS_DATA; UsageError when the variable is unset or the file isn't there."""
    root = os.environ.get("NPAS_DATA")
    if not root:
        raise UsageError("NPAS_DATA is not set, and this needs real images and pretrained networks.", "Set it to the folder that holds cifar10/, imagenet-sample/ and weights/.")
    path = Path(root, *parts)
    if not path.exists():
        raise UsageError(f"There is no {path}.", "Set NPAS_DATA to the folder that holds it.")
    return path


def decoded(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """``make()``, kept in the user's cache as ``name``.npy and mapped from there, so that several processes share the memory."""
    folder = Path(os.environ.get("NPAS_CACHE") or Path.home() / ".cache" / "npas") / "shared_data"
    path = folder / f"{name}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{name}.{os.getpid()}.npy"
        np.save(temporary, make())
        os.replace(temporary, path)
    return np.load(path, mmap_mode="c")
