"""One blob for all weights, biases and index lists of a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.compiler.kernels.kernel import Kernel
from stages.compiler.plan import ALIGNMENT


def pack(kernels: Sequence[Kernel]) -> tuple[bytes, list[dict[str, int]]]:
    """(the blob, for each kernel the byte offset of each of its arrays). Equal arrays are stored once."""
    parts: list[bytes] = []
    known: dict[bytes, int] = {}
    size = 0
    offsets = []
    for kernel in kernels:
        here = {}
        for name, array in kernel.data.items():
            content = np.ascontiguousarray(array).tobytes()
            if content not in known:
                known[content] = size
                parts.append(content + b"\0" * (-len(content) % ALIGNMENT))
                size += len(parts[-1])
            here[name] = known[content]
        offsets.append(here)
    return b"".join(parts), offsets
