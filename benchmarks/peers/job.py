"""What crosses the border between npas's environment and an engine's. Imports numpy and the standard library only, and runs on every Python from 3.9."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class Job:
    """One engine on one network: what to convert, load and run.

    ``source`` holds network.onnx, network.pt2, input.npy and output.npy (of PyTorch); ``model`` is the engine's own folder, with the converted network and,
    for an engine that computes something else than the dense network, an output.npy of its own. ``rate`` is the pruning rate, 1 for dense.
    """

    adapter: str
    network: str
    seed: int
    source: str
    model: str
    threads: int = 1
    rate: float = 1.0

    @property
    def onnx(self) -> str:
        """Path of the ONNX file (opset 18, fp32, weights inside)."""
        return str(Path(self.source) / "network.onnx")

    @property
    def program(self) -> str:
        """Path of the torch.export program (.pt2)."""
        return str(Path(self.source) / "network.pt2")

    def converted(self, name: str) -> str:
        """Path of a file in the engine's folder."""
        return str(Path(self.model) / name)

    def input(self) -> np.ndarray:
        """The network's input, (1, 3, height, width) float32."""
        return np.load(Path(self.source) / "input.npy")

    def expected(self) -> np.ndarray:
        """What PyTorch computes from ``input``, (1, classes) float32."""
        own = Path(self.model) / "output.npy"
        return np.load(own if own.exists() else Path(self.source) / "output.npy")

    def dump(self) -> str:
        """The job as one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def parse(cls, text: str) -> Job:
        """The job that ``dump`` wrote."""
        return cls(**json.loads(text))


@dataclasses.dataclass(frozen=True)
class Session:
    """A loaded network with its input bound. ``step`` runs it once, which is what is timed; ``output`` returns the last result as (1, classes)."""

    step: Callable[[], object]
    output: Callable[[], np.ndarray]
    version: str
    note: str = ""  # what the table should say about how it was run
