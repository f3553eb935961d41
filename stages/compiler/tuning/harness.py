"""Candidates of one layer, timed against each other: compiled, linked into one small program with their real weights, and run as a process of its own on a pinned core. Imports no TVM on a warm cache."""

from __future__ import annotations

import fcntl
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from stages.artifacts import cache_dir
from stages.compiler import cache, toolchain
from stages.compiler.emit import OPERANDS
from stages.compiler.kernels.kernel import Kernel, Placed
from stages.compiler.pack import pack
from stages.compiler.target import Target
from stages.errors import NpasError, RunnerCrashed

TOLERANCE = 1e-3  # of the largest result: more is wrong; Winograd's rounding is a tenth of it
FAR_WEIGHTS = 1 << 20  # a layer with more weights (bytes) stands in a network whose weights come from main memory
FAR_FLUSH, NEAR_FLUSH = 64 << 20, 4 << 20  # bytes: more than the last and than the second level of caches
TIMEOUT = 300.0
_SOURCE = Path(__file__).parent / "harness.c"


@dataclass(frozen=True)
class Times:
    """Microseconds of one call in each round, and the largest difference to the first candidate's results, relative to the largest of these."""

    samples: tuple[float, ...]
    error: float

    @property
    def right(self) -> bool:
        """Whether it computes the same."""
        return self.error <= TOLERANCE

    def ratio(self, reference: Times) -> float:
        """How many times longer it takes than ``reference`` of the same rounds: by the shortest calls, or by the median of the rounds' ratios, whichever is larger.

        The shortest calls are the most precise, unless the machine runs at two speeds and few rounds caught the higher one. The rounds' ratios don't mind that.
        """
        rounds = statistics.median(a / b for a, b in zip(self.samples, reference.samples, strict=True))
        return max(min(self.samples) / min(reference.samples), rounds)


class Harness:
    """``kernels`` of the layer ``placed`` as a program; a context, because the program lies in a temporary folder. Compiles what the kernel cache lacks."""

    def __init__(self, placed: Placed, kernels: Sequence[Kernel], target: Target):
        self._folder = tempfile.TemporaryDirectory(prefix="npas-tune-")
        assert placed.step.weight is not None
        self._flush = FAR_FLUSH if placed.step.weight.nbytes > FAR_WEIGHTS else NEAR_FLUSH
        names, objects, _ = cache.objects(kernels, target)
        _build(Path(self._folder.name), placed, kernels, names, objects)

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def time(self, numbers: Sequence[int], rounds: int, seconds: float) -> list[Times]:
        """Times of the candidates ``numbers`` in at most ``rounds`` interleaved rounds and about ``seconds``; results are compared with the first one's. RunnerCrashed."""
        folder, cpu = Path(self._folder.name), max(os.sched_getaffinity(0))
        words = [folder / "harness", folder / "data", cpu, rounds, seconds, self._flush, *numbers]
        with _reserved(cpu):
            try:
                done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False, timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                raise RunnerCrashed(f"Timing candidate kernels took more than {TIMEOUT:g} s.", "Is the machine very busy?") from None
        if done.returncode:
            raise RunnerCrashed(
                f"The program that times candidate kernels ended with code {done.returncode}: {done.stderr.strip()}", "Report this with the network."
            )
        return [_times(line) for line in done.stdout.splitlines()]


def _times(line: str) -> Times:
    _, error, *samples = (float(word) for word in line.split())
    return Times(tuple(samples), error)


@contextmanager
def _reserved(cpu: int) -> Iterator[None]:
    """Wait for another npas that measures on this core; devices/host.py takes the same lock."""
    with open(cache_dir("runner") / f"core{cpu}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(folder: Path, placed: Placed, kernels: Sequence[Kernel], names: Sequence[str], objects: dict[str, Path]) -> None:
    generator = np.random.default_rng(0)
    activations = [generator.standard_normal(layout.size, dtype=np.float32) for layout in placed.inputs]
    blob, places = pack([Kernel("", None, placed.step, {f"activation{i}": a for i, a in enumerate(activations)}), *kernels])
    (folder / "data").write_bytes(blob)
    inputs = [f"  {{{places[0][f'activation{i}']}, {a.nbytes}}}," for i, a in enumerate(activations)]
    rows = [_row(kernel, name, where) for kernel, name, where in zip(kernels, names, places[1:], strict=True)]
    out = placed.output
    table = [
        *(f"extern void {name}({', '.join(['const void *'] * 8)}, void *, void *, int32_t, int32_t);" for name in sorted(set(names))),
        f"enum {{ RESULT_BYTES = {out.size * 4}, SCRATCH_BYTES = {max(k.scratch for k in kernels)}, PITCH = {out.pitch}, CHANNELS = {out.shape[1]} }};",
        "static const activation activations[] = {", *inputs, "};",
        "static const candidate candidates[] = {", *rows, "};",
    ]  # fmt: skip
    (folder / "table.h").write_text("\n".join(table) + "\n", encoding="utf-8")
    shutil.copyfile(_SOURCE, folder / _SOURCE.name)
    command = [*toolchain.host(), "-O1", "harness.c", *(str(path.resolve()) for path in objects.values()), "-lm", "-o", "harness"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NpasError(
            f"The program that times candidate kernels can't be linked: {done.stderr.strip()[-300:]}", "Install a C compiler (cc), or the ziglang package."
        )


def _row(kernel: Kernel, name: str, places: dict[str, int]) -> str:
    inputs = {operand: f"{{WRITTEN, {i}}}" for i, operand in enumerate(("x", "e0", "e1", "e2")[: len(kernel.step.inputs)])}
    known = inputs | {"y": "{RESULT, 0}"} | ({"s": "{SCRATCH, 0}"} if kernel.scratch else {}) | {o: f"{{DATA, {place}}}" for o, place in places.items()}
    return f"  {{{name}, {kernel.units}, {{{', '.join(known.get(o, '{NONE, 0}') for o in OPERANDS)}}}}},"
