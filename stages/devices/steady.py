"""Measure again when a measurement may not be trusted: a shared machine has bad moments. Imports progress and devices/ of npas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.devices import Device, Measurement, TimingProtocol
from stages.devices.correct import Expected
from stages.devices.models import Model
from stages.progress import Progress

ATTEMPTS = 3


def measure_steadily(device: Device, models: Sequence[Model], inputs: Sequence[np.ndarray], protocol: TimingProtocol, progress: Progress, expected: Expected | None = None) -> Measurement:
    """The first valid measurement of ``models``, or the last of ATTEMPTS, which then says why it isn't. Whole sessions only: nothing of two is mixed, no sample is dropped."""
    for attempt in range(1, ATTEMPTS + 1):
        measured = device.measure(models, inputs, protocol, expected)
        if measured.valid:
            break
        progress.say(f"measurement {attempt} of {ATTEMPTS} is not to be trusted: {'; '.join(measured.reasons)}")
    return measured
