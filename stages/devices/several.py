"""Equal phones as one device: each measurement is taken by the next phone that answers, and one that is lost costs only that it is asked elsewhere. Imports devices/ and errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from stages.devices.android import Android
from stages.devices.correct import Expected
from stages.devices.models import Model
from stages.devices.timing import Measurement, TimingProtocol
from stages.errors import DeviceLost, DeviceNotFound, DeviceUnauthorised, UsageError

T = TypeVar("T")
GONE = (DeviceLost, DeviceNotFound, DeviceUnauthorised)
DEFAULT = TimingProtocol()


def kind(identity: Mapping[str, Any]) -> tuple[str, ...]:
    """What phones have in common whose times can be compared."""
    return identity["model"], identity["soc"], identity["abi"]


class Several:
    """The Device protocol on phones of the same kind, named by their specs. They take turns; one that is gone is tried again after all others."""

    target = Android.target

    def __init__(self, phones: dict[str, Android], say: Callable[[str], None] = lambda line: None):
        self._phones, self._say = dict(phones), say

    def probe(self) -> dict[str, Any]:
        """The identity of the first, without its serial. UsageError when they are of different kinds: their times can't be compared."""
        found = {spec: phone.probe() for spec, phone in self._phones.items()}
        if len({kind(who) for who in found.values()}) > 1:
            listed = ", ".join(f"{spec} is {who['model']} ({who['soc']})" for spec, who in found.items())
            raise UsageError(f"The phones differ: {listed}.", "Measure on phones of one model.")
        return found[min(found, key=lambda spec: found[spec]["fingerprint"])]  # the same whatever the order they are named in

    def outputs(self, models: Sequence[Model], inputs: Sequence[np.ndarray], protocol: TimingProtocol = DEFAULT) -> tuple[tuple[np.ndarray, ...], ...]:
        """See Device.outputs."""
        return self._ask(lambda phone: phone.outputs(models, inputs, protocol))

    def measure(self, models: Sequence[Model], inputs: Sequence[np.ndarray], protocol: TimingProtocol, expected: Expected | None = None) -> Measurement:
        """See Device.measure; all of one measurement is taken on one phone."""
        return self._ask(lambda phone: phone.measure(models, inputs, protocol, expected))

    def profile(self, model: Model, inputs: Sequence[np.ndarray], runs: int, protocol: TimingProtocol) -> list[float]:
        """See Device.profile."""
        return self._ask(lambda phone: phone.profile(model, inputs, runs, protocol))

    def manifests(self, models: Sequence[Model]) -> list[dict[str, Any]]:
        """See Device.manifests."""
        return self._ask(lambda phone: phone.manifests(models))

    def ready(self) -> None:
        """One of them is."""
        self._ask(lambda phone: phone.ready())

    def close(self) -> None:
        """End all connections."""
        for phone in self._phones.values():
            phone.close()

    def _ask(self, question: Callable[[Android], T]) -> T:
        """The answer of the first phone in the queue that has one; whoever was asked goes to its end. The last error when none answers."""
        error: Exception = DeviceNotFound("No phone was named.", "Give probe.device as adb:SERIAL,adb:SERIAL.")
        for spec in list(self._phones):
            phone = self._phones.pop(spec)
            self._phones[spec] = phone
            try:
                return question(phone)
            except GONE as gone:
                phone.close()
                self._say(f"{spec}: {gone.message} Another phone takes over.")
                error = gone
        raise error
