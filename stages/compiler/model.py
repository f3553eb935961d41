"""A compiled network in this process: ctypes around the plain C ABI of model.so. Imports numpy only, no TVM and no torch."""

from __future__ import annotations

import ctypes
import json
import math
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts import write_atomic
from stages.errors import ArtifactError, UsageError


class CompiledModel:
    """A network compiled to a shared library. Call it with numpy arrays shaped as ``manifest["inputs"]``; it returns a tuple of numpy arrays.

    The workspace belongs to this object, so calls of one object must not run at the same time.
    """

    def __init__(self, path: Path, copy: Path | None = None, keep: Any = None):
        self.path = path
        self._keep = keep  # a temporary folder lives as long as the model
        try:
            self._library = ctypes.CDLL(str((copy or path).resolve()))
            self._library.npas_manifest.restype = ctypes.c_char_p
            self._library.npas_workspace_bytes.restype = ctypes.c_size_t
            self.manifest: dict[str, Any] = json.loads(self._library.npas_manifest())
        except (OSError, AttributeError, ValueError) as error:
            raise ArtifactError(f"{path} is not a model compiled by npas: {error}.", "Make it with 'npas compile'.") from None
        self._workspace = _aligned(self._library.npas_workspace_bytes())

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """The network's outputs, new float32 arrays. UsageError when the inputs' number or shapes differ from the traced example's."""
        outputs = self._outputs()
        self._call("npas_run", self._checked(inputs), outputs)
        return tuple(outputs)

    def profile(self, runs: int = 20, inputs: tuple[np.ndarray, ...] = ()) -> list[tuple[str, str, float]]:
        """(layer, kernel, median milliseconds over ``runs``) in the order in which the kernels run; zeros as inputs if none are given."""
        arrays = self._checked(inputs or tuple(np.zeros(i["shape"], np.float32) for i in self.manifest["inputs"]))
        kernels, outputs, samples = self.manifest["kernels"], self._outputs(), []
        for _ in range(runs):
            times = (ctypes.c_double * len(kernels))()
            self._call("npas_profile", arrays, outputs, times)
            samples.append(list(times))
        return [(k["layer"], k["kernel"], statistics.median(column)) for k, column in zip(kernels, zip(*samples, strict=True), strict=True)]

    def save(self, path: str | Path) -> Path:
        """Copy the library to ``path``, atomically."""
        content = self.path.read_bytes()

        def write(temporary: Path) -> None:
            temporary.write_bytes(content)

        return write_atomic(path, write)

    def _checked(self, inputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        expected = [tuple(i["shape"]) for i in self.manifest["inputs"]]
        found = [tuple(np.shape(x)) for x in inputs]
        if found != expected:
            raise UsageError(
                f"The compiled network takes inputs of shapes {expected}, not {found}.", "Shapes, the batch included, are fixed when the network is compiled."
            )
        return [np.ascontiguousarray(x, np.float32) for x in inputs]

    def _outputs(self) -> list[np.ndarray]:
        return [np.empty(o["shape"], np.float32) for o in self.manifest["outputs"]]

    def _call(self, function: str, inputs: list[np.ndarray], outputs: list[np.ndarray], *more: Any) -> None:
        threads = self.manifest["target"]["threads"]
        code = getattr(self._library, function)(_pointers(inputs), _pointers(outputs), ctypes.c_void_p(self._workspace.ctypes.data), threads, *more)
        if code:
            raise UsageError(f"The compiled network refused to run (code {code}).", f"It was compiled for {threads} thread(s).")


def load_model(path: str | Path) -> CompiledModel:
    """The model that ``CompiledModel.save`` or ``npas compile`` wrote. ArtifactError when there is none, or it is something else; UsageError for another processor's."""
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist.", "Make it with 'npas compile'.")
    if _machine(path) not in (None, _machine(Path(sys.executable))):
        raise UsageError(f"{path} was compiled for another processor and can't run here.", "Compile the network for target 'host'.")
    folder = tempfile.TemporaryDirectory(prefix="npas-model-")
    copy = Path(folder.name) / "model.so"
    shutil.copyfile(path, copy)  # the loader knows libraries by name: a file that was replaced since would come back as it was
    return CompiledModel(path, copy, keep=folder)


def _machine(path: Path) -> bytes | None:
    """The processor that an ELF file is for, None for any other file."""
    with path.open("rb") as file:
        head = file.read(20)
    return head[18:] if head.startswith(b"\x7fELF") else None


def _pointers(arrays: list[np.ndarray]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])


def _aligned(size: int) -> np.ndarray:
    """``size`` bytes at a multiple of 64."""
    room = np.zeros(size + 64, np.uint8)
    start = math.ceil(room.ctypes.data / 64) * 64 - room.ctypes.data
    return room[start : start + size]
