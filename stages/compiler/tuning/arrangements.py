"""Which resolutions of a network run on planes, measured: whole networks with their transforms, in the few arrangements that are estimated to be the fastest, timed in the same rounds. Imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from stages.compiler.api import Build, prepare, simplified
from stages.compiler.arrange import Resolutions, rank
from stages.compiler.target import Target
from stages.compiler.tuning import database
from stages.compiler.tuning.harness import TOLERANCE, Times
from stages.compiler.tuning.request import Request
from stages.compiler.tuning.signature import network
from stages.compiler.tuning.tuner import LEAST_GAIN, Verdict
from stages.devices.correct import Expected
from stages.devices.host import HostDevice
from stages.devices.timing import TimingProtocol
from stages.progress import Progress, bar

MOST = 8  # arrangements measured for a network
NEAR = 1.15  # times the fastest one's estimate: beyond it none is measured
FINALISTS = 3
_ROUND, _FINAL = TimingProtocol(runs=20, warmup=2, warmup_seconds=0.2), TimingProtocol(runs=100, warmup=2, warmup_seconds=0.2)


def tune_arrangements(requests: Sequence[Request], target: Target, minutes: float, progress: Progress) -> list[Verdict]:
    """Measure the arrangements of those ``requests`` that have no verdict of this machine, for about ``minutes``; each verdict is in the journal before the next network begins."""
    end = time.monotonic() + minutes * 60
    file = database.path(target)
    database.start(file, target)
    found = []
    with bar(progress, "choosing layouts", len(requests)):
        for request in requests:
            verdict = _tune(request, target, lambda: time.monotonic() < end)
            if verdict is not None:
                found.append(verdict)
            progress.advance(f"{verdict.signature}: {verdict.label}, {verdict.gain:.2f}x as fast as estimated best, {verdict.measured} measured" if verdict else "")
    return found


def _tune(request: Request, target: Target, go_on: Callable[[], bool]) -> Verdict | None:
    """The verdict for one network; None when there is one already, nothing to choose, or no time left."""
    prepared = prepare(request.module, request.example, request.scheme, request.graph)
    program = simplified(*prepared, target)
    name, file = network(program), database.path(target)
    ranked = rank(program, target)
    near = [chosen for cycles, chosen in ranked[:MOST] if cycles <= NEAR * ranked[0][0]]
    if len(near) < 2 or name in database.read(file).planes:
        return None
    models = {}
    for chosen in near:
        if not go_on():
            return None
        models[chosen] = Build(*prepared, target, threads=1, planes=chosen).link()
    inputs = [np.random.default_rng(0).standard_normal(port["shape"], np.float32) for port in models[near[0]].manifest["inputs"]]

    outputs = models[near[0]](*inputs)

    def race(candidates: Sequence[Resolutions], protocol: TimingProtocol) -> dict[Resolutions, float]:
        right = Expected(["rearranged"] * len(candidates), [outputs] * len(candidates), TOLERANCE)
        measured = HostDevice().measure([models[c].path for c in candidates], inputs, protocol, right)
        times = [Times(samples, 0.0) for samples in measured.samples_ms]
        return {c: t.ratio(times[0]) for c, t in zip(candidates, times, strict=True)}

    costs = race(near, _ROUND)
    final = race([near[0], *sorted(near[1:], key=lambda c: costs[c])[:FINALISTS]], _FINAL)
    best = min(final, key=lambda c: final[c])
    if final[best] > 1 - LEAST_GAIN:
        best = near[0]
    gain = 1 / final[best]
    row = {"kind": "planes", "network": name, "resolutions": best, "untuned": near[0], "gain": round(gain, 4), "measured": len(near)}
    database.append(file, row)
    return Verdict(name, f"planes at {', '.join(f'{h}x{w}' for h, w in best)}" if best else "no planes", gain, len(near))
