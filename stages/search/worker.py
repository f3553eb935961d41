"""The one measuring process of a device: calls from any thread wait for each other, and one crash is repaired. Imports errors and parallel only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any

from stages.errors import NpasError, RunnerCrashed, WorkerLost
from stages.parallel.local import Process
from stages.parallel.pool import Handler


class Worker:
    """``worker.call(request)`` is ``make(*args)(request)`` in a process of its own, on the cores ``cpus``.

    The process is started by the first call and keeps what ``make`` built. An exception of the handler is raised here as an NpasError, and the process lives on. If it dies,
    or is silent for ``timeout`` seconds, it is started again and the request repeated once; the second time is RunnerCrashed. It ends with this process, also when that is
    killed.
    """

    def __init__(self, make: Callable[..., Handler], *args: Any, cpus: Collection[int] = (), timeout: float = 600.0):
        self._make, self._args, self._cpus, self._timeout = make, args, sorted(cpus), timeout
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the process, when it runs."""
        return self._process.pid if self._process else None

    def call(self, request: Any) -> Any:
        """The handler's answer to ``request`` (both picklable)."""
        with self._lock:
            for last in (False, True):
                try:
                    answer = self._exchange(request)
                    break
                except WorkerLost as error:
                    self._end()
                    if last or self._closed:
                        raise RunnerCrashed(f"The measuring process failed twice in a row. {error.message}", error.hint) from None
        if isinstance(answer, NpasError):
            raise answer
        return answer

    def close(self) -> None:
        """End the process at once, also one that is at work."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exchange(self, request: Any) -> Any:
        if self._closed:
            raise WorkerLost("The measuring process was closed.")
        if self._process is None:
            self._process = Process(self._make, self._args, self._cpus)
        self._process.send(request)
        if not self._process.connection.poll(self._timeout):
            raise WorkerLost(f"It was silent for {self._timeout:g} s.")
        return self._process.receive()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()
