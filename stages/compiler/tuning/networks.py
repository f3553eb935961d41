"""tune: measure the layout of a network, then the choices of its layers, the most expensive first. Imports torch."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor, nn

from stages.compiler import select
from stages.compiler.api import Build, prepare
from stages.compiler.kernels.kernel import Placed
from stages.compiler.target import Target, resolve
from stages.compiler.tuning.arrangements import tune_arrangements
from stages.compiler.tuning.request import Request
from stages.compiler.tuning.search import ENUMERATE
from stages.compiler.tuning.tuner import Verdict, tune_layers
from stages.errors import UsageError
from stages.progress import Progress, Silent
from stages.schemes.scheme import Scheme

RUNS = 5  # of the network, to learn which layers are expensive


def tune(
    module: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    scheme: Scheme | None = None,
    target: str = "host",
    minutes: float = 10.0,
    *,
    progress: Progress | None = None,
    most: int = ENUMERATE,
) -> list[Verdict]:
    """Measure, for about ``minutes`` at most, which layout and tiles run ``module`` fastest on this machine; every later compilation uses what was found.

    Arguments as of compile_model. At most ``most`` candidates of a layer are measured. Interrupted at any moment and called again, it goes on where it stopped. Returns the verdicts reached by this call.
    Raises UsageError when ``target`` isn't this machine.
    """
    return tune_networks([Request(module, example, scheme)], target, minutes, progress or Silent(), most)


def tune_networks(requests: Sequence[Request], target: str, minutes: float, progress: Progress, most: int = ENUMERATE) -> list[Verdict]:
    """``tune`` for several networks together: a layer that they share is measured once, and the most expensive layer of all comes first."""
    if target != "host":
        raise UsageError(f"Can't measure kernels for '{target}' on this machine.", "Tuning is for target host.")
    return tune_for(requests, resolve(target), minutes, progress, most)


def tune_for(requests: Sequence[Request], target: Target, minutes: float, progress: Progress, most: int) -> list[Verdict]:
    """``tune_networks`` for code that this machine can run, whatever it would choose itself."""
    begin = time.monotonic()
    layouts = tune_arrangements(requests, target, minutes, progress)
    layers = [found for request in requests for found in _layers(request, target)]
    return [*layouts, *tune_layers(layers, target, minutes - (time.monotonic() - begin) / 60, progress, most)]


def _layers(request: Request, target: Target) -> list[tuple[Placed, float]]:
    """The network's layers, each where it lies, and the milliseconds that it takes as compiled now."""
    build = Build(*prepare(request.module, request.example, request.scheme, request.graph), target, threads=1, alone=True)
    times = build.link().profile(RUNS)
    return [(select.place(step, build.layouts), ms) for step, (_, _, ms) in zip(build.program.steps, times, strict=True)]
