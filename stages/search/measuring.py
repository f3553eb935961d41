"""The devices that measure candidates, as one queue: the next free one takes the next request, and one that is lost or hot costs nobody else a thing. Imports errors only."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from stages.errors import DeviceHot, DeviceLost, DeviceNotFound, DeviceUnauthorised, Interrupted, NpasError

AWAY = (DeviceLost, DeviceNotFound, DeviceUnauthorised, DeviceHot)  # not the candidate's fault, and it may pass
READY = "ready"  # the request that raises what still keeps a device from measuring, and does nothing else
MOST_LOSSES = 2  # a candidate at which one phone goes away so often isn't measured any more: it may be what ends it


class Asked(Protocol):
    """One device: a search.worker.Worker."""

    def call(self, request: Any) -> Any:
        """Its answer; raises one of AWAY while it can't measure."""

    def close(self) -> None:
        """End it at once, also at work."""


@dataclass
class _Away:
    why: NpasError
    look: float  # when it is asked next


class Measurers:
    """``call`` may be called from ``size`` threads at once; each call is answered by one device.

    A device that raises one of AWAY leaves the queue, its request goes to another one (or to the same one when it is back), and it is asked every ``look_s`` seconds whether it is
    ready again. When none has been able to measure for ``patience_s``, the reason is raised. ``say`` hears who left and who came back.
    """

    def __init__(self, devices: Mapping[str, Asked], say: Callable[[str], None], patience_s: float, look_s: float = 5.0):
        self.size = len(devices)
        self._devices, self._say, self._patience, self._look = dict(devices), say, patience_s, look_s
        self._change = threading.Condition()
        self._free, self._busy, self._away = deque(devices), set[str](), dict[str, _Away]()
        self._closed = False

    def call(self, request: Any) -> Any:
        """The answer of the first device that has one. NpasError when one was lost at this request again and again: the request's failure."""
        losses: Counter[str] = Counter()
        while True:
            name = self._take()
            try:
                answer = self._devices[name].call(request)
            except AWAY as why:
                self._leave(name, why)
                losses[name] += isinstance(why, DeviceLost)
                if losses[name] == MOST_LOSSES:
                    raise NpasError(f"{name} was lost {MOST_LOSSES} times while it was measured; the last time: {why.message}", why.hint) from why
            except BaseException:
                self._give(name)
                raise
            else:
                self._give(name)
                return answer

    def close(self) -> None:
        """End all devices; whoever waits for one gets Interrupted."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        for device in self._devices.values():
            device.close()

    def __enter__(self) -> Measurers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> str:
        """A device that can measure, kept from others until _give or _leave."""
        end = time.monotonic() + self._patience
        while True:
            with self._change:
                if self._closed:
                    raise Interrupted("The measurement was stopped.")
                if self._free:
                    name = self._free.popleft()
                    self._busy.add(name)
                    return name
                if not self._busy and time.monotonic() >= end:
                    raise next(iter(self._away.values())).why
                name = min(self._away, key=lambda n: self._away[n].look, default="")
                wait = self._away[name].look - time.monotonic() if name else self._look
                if wait > 0:
                    self._change.wait(wait)
                    continue
                left = self._away.pop(name)
                self._busy.add(name)
            if self._is_back(name, left):
                return name

    def _is_back(self, name: str, left: _Away) -> bool:
        """Ask a device that was away; it stays the caller's when it is ready."""
        try:
            self._devices[name].call(READY)
        except AWAY as why:
            self._put_away(name, why)
            if type(why) is not type(left.why):
                self._say(why.message)
            return False
        except BaseException:
            self._give(name)
            raise
        self._say(f"{name} measures again")
        return True

    def _leave(self, name: str, why: NpasError) -> None:
        self._put_away(name, why)
        with self._change:
            alone = len(self._away) == self.size
        self._say(f"{why.message} {'Measuring waits' if alone else 'Other phones go on measuring'}; training goes on.")

    def _put_away(self, name: str, why: NpasError) -> None:
        with self._change:
            self._busy.discard(name)
            self._away[name] = _Away(why, time.monotonic() + self._look)
            self._change.notify_all()

    def _give(self, name: str) -> None:
        with self._change:
            self._busy.discard(name)
            self._free.append(name)
            self._change.notify()
