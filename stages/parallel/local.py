"""Workers as child processes of this machine. Imports errors and pool."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from stages.errors import NpasError, WorkerLost
from stages.parallel.pool import Answering, Handler, Member, Pool

GRACE = 2.0  # seconds in which a process that closed its connection has died


class LocalPool(Pool):
    """A process of this machine for every entry of ``cpus`` and ``environments``."""

    def __init__(self, make: Callable[..., Handler], args: Sequence[Any], cpus: Sequence[Collection[int]], environments: Sequence[Mapping[str, str]]):
        super().__init__(len(cpus))
        self._make, self._args, self._cpus, self._environments = make, args, cpus, environments

    def _hire(self, number: int) -> Process:
        return Process(self._make, self._args, self._cpus[number], self._environments[number])

    def _ready(self, members: Sequence[Member], timeout: float | None) -> Sequence[Member]:
        by_connection = {m.connection: m for m in members if isinstance(m, Process)}
        return [by_connection[c] for c in wait(list(by_connection), timeout) if isinstance(c, Connection)]


class Process:
    """A child (by spawn: no state is inherited) on the cores ``cpus`` that answers requests one by one. It ends with this process, also when that is killed, and at work."""

    def __init__(self, make: Callable[..., Handler], args: Sequence[Any] = (), cpus: Collection[int] = (), environment: Mapping[str, str] = {}):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, tuple(args), tuple(cpus), dict(environment)), name="npas-worker", daemon=True)
        self._process.start()
        theirs.close()  # so that the child's death is an end of file here

    @property
    def pid(self) -> int | None:
        """Of the child."""
        return self._process.pid

    def send(self, request: Any) -> None:
        """See Member."""
        try:
            self.connection.send(request)
        except OSError:
            raise self._lost() from None

    def receive(self) -> Any:
        """See Member."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            raise self._lost() from None

    def kill(self) -> None:
        """SIGKILL; whoever waits for it learns that it is lost."""
        self._process.kill()

    def end(self) -> None:
        """See Member."""
        self._process.kill()
        self._process.join()
        self.connection.close()

    def _lost(self) -> WorkerLost:
        self._process.join(GRACE)
        code = self._process.exitcode
        fate = "closed its connection" if code is None else f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return WorkerLost(f"A worker process {fate}.", "Look at the memory of this machine; -vv shows more.")


def _serve(connection: Connection, make: Callable[..., Handler], args: tuple[Any, ...], cpus: tuple[int, ...], environment: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(2, 1)  # the parent's stdout belongs to --json
    os.environ.update(environment)  # in time for CUDA, which reads it at its first use
    if cpus:
        os.sched_setaffinity(0, cpus)
    answering = Answering(make, args)
    while True:
        try:
            answer = answering(connection.recv())
            try:
                connection.send(answer)
            except OSError:
                return
            except Exception as error:  # nothing was sent yet: pickling comes first
                connection.send(NpasError(f"The answer can't be sent ({type(error).__name__}: {error})."))
        except (EOFError, OSError):
            return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
