"""A child process that answers requests, and is started anew when it dies or falls silent. Imports errors only."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection
from multiprocessing.connection import Connection
from typing import Any

from stages.errors import NpasError, RunnerCrashed

Handler = Callable[[Any], Any]


class Worker:
    """``worker.call(request)`` is ``make(*args)(request)`` in a process of its own, on the cores ``cpus``.

    The process is started by the first call (by spawn: no state is inherited) and keeps what ``make`` built. An exception of the handler is raised here, and the process
    lives on. If it dies, or is silent for ``timeout`` seconds, it is started again and the request repeated once; the second time is RunnerCrashed. It ends with this process,
    also when that is killed. Calls from several threads wait for each other.
    """

    def __init__(self, make: Callable[..., Handler], *args: Any, cpus: Collection[int] = (), timeout: float = 600.0):
        self._make, self._args, self._cpus, self._timeout = make, args, sorted(cpus), timeout
        self._lock = threading.Lock()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None
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
                    ok, answer = self._exchange(request)
                    break
                except (EOFError, OSError) as error:
                    reason = self._end(error)
                    if last or self._closed:
                        raise RunnerCrashed(f"The measuring process {reason}, twice in a row.", "Look at the memory of this machine; -vv shows more.") from None
        if not ok:
            raise answer
        return answer

    def close(self) -> None:
        """End the process at once, also one that is at work."""
        self._closed = True
        process = self._process
        if process is not None and process.is_alive():
            process.kill()
        with self._lock:
            self._end(None)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exchange(self, request: Any) -> tuple[bool, Any]:
        if self._closed:
            raise EOFError
        if self._process is None:
            self._start()
        assert self._connection is not None
        self._connection.send(request)
        if not self._connection.poll(self._timeout):
            raise TimeoutError
        answer: tuple[bool, Any] = self._connection.recv()
        return answer

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._make, self._args, self._cpus), name="npas-latency", daemon=True)
        self._process.start()
        theirs.close()  # so that the child's death is an end of file here

    def _end(self, error: BaseException | None) -> str:
        """Stop what runs; says what became of it."""
        process, self._process = self._process, None
        if self._connection is not None:
            self._connection.close()
        if process is None:
            return "was closed"
        process.join(1.0)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
            return f"was silent for {self._timeout:g} s" if isinstance(error, TimeoutError) else "was stopped"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _serve(connection: Connection, make: Callable[..., Handler], args: tuple[Any, ...], cpus: list[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the connection
    os.dup2(2, 1)  # the parent's stdout belongs to --json
    if cpus:
        os.sched_setaffinity(0, cpus)
    handler: Handler | None = None
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            handler = handler or make(*args)
            answer = (True, handler(request))
        except Exception as error:
            answer = (False, error if isinstance(error, NpasError) else NpasError(f"{type(error).__name__}: {error}"))
        try:
            connection.send(answer)
        except OSError:
            return
