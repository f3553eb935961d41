"""Whether a network computes what PyTorch computes: the question before any timing. Imports errors only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.errors import WrongOutput

Outputs = Sequence[np.ndarray]


@dataclass(frozen=True)
class Expected:
    """``outputs[k]`` are the reference arrays of the network called ``names[k]``; a device compares its first outputs with them and times nothing that is wrong."""

    names: Sequence[str]
    outputs: Sequence[Outputs]
    tolerance: float

    def check(self, found: Sequence[Outputs]) -> list[dict[str, float]]:
        """``correctness`` of every network; WrongOutput (exit 10) for the first that is wrong."""
        return [correctness(name, a, b, self.tolerance) for name, a, b in zip(self.names, found, self.outputs, strict=True)]


def correctness(name: str, outputs: Outputs, expected: Outputs, tolerance: float) -> dict[str, float]:
    """Largest absolute error of ``outputs`` against PyTorch's, and largest absolute output. WrongOutput (exit 10) beyond ``tolerance`` times the latter.

    A NaN anywhere, another number of outputs or another shape is wrong too. The C runner's ``check`` applies the same rule on the device.
    """
    same = len(outputs) == len(expected) and all(a.shape == b.shape for a, b in zip(outputs, expected, strict=False))
    error = max((float(np.max(np.abs(a - b), initial=0.0)) for a, b in zip(outputs, expected, strict=True)), default=0.0) if same else float("nan")
    largest = max((float(np.max(np.abs(b), initial=0.0)) for b in expected), default=0.0)
    if not error <= tolerance * largest:
        found = f"the largest error is {error:.3g}, the largest output {largest:.3g}" if same else "another number or shape of outputs"
        raise WrongOutput(f"The compiled {name} network does not compute what PyTorch computes: {found}.", "Nothing was timed. Compile it again with 'npas compile', which checks it too.")
    return {"max_abs_err": error, "max_abs_output": largest, "tolerance": tolerance}
