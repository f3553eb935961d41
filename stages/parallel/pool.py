"""The pool of workers: requests with keys go in, answers come out in order of completion. Imports errors only; who the workers are is for its children to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from stages.errors import NpasError, WorkerLost

Handler = Callable[[Any], Any]


class Answering:
    """``make(*args)``, built at the first request, as a function that never raises: an exception is an NpasError value."""

    def __init__(self, make: Callable[..., Handler], args: Sequence[Any]):
        self._make, self._args = make, args
        self._handler: Handler | None = None

    def __call__(self, request: Any) -> Any:
        """The answer, or the error."""
        try:
            self._handler = self._handler or self._make(*self._args)
            return self._handler(request)
        except Exception as error:
            return error if isinstance(error, NpasError) else NpasError(f"{type(error).__name__}: {error}")


class Member(Protocol):
    """One worker of a pool, which has at most one request at a time."""

    def send(self, request: Any) -> None:
        """Hand over a request; WorkerLost when the worker is found dead."""

    def receive(self) -> Any:
        """Its answer; an exception of the handler is an NpasError value. WorkerLost when it died at it."""

    def end(self) -> None:
        """Stop it at once, also at work."""


class Pool(ABC):
    """Requests go in with a key each and come back in order of completion. For use by one thread.

    A worker that dies costs the request that it had: its answer is a WorkerLost, and the next request starts the worker anew. What ``make`` raises is the answer too.
    """

    def __init__(self, size: int):
        self.size = size
        self._members: list[Member | None] = [None] * size  # started when first needed
        self._working: dict[int, Hashable] = {}  # worker -> key
        self._waiting: deque[tuple[Hashable, Any]] = deque()
        self._done: deque[tuple[Hashable, Any]] = deque()

    @property
    def pending(self) -> int:
        """Requests whose answers weren't handed out yet."""
        return len(self._working) + len(self._waiting) + len(self._done)

    def submit(self, key: Hashable, request: Any) -> None:
        """Queue a request; an idle worker begins at once."""
        self._waiting.append((key, request))
        self._hand_out()

    def next(self, timeout: float | None = None) -> tuple[Any, Any]:
        """The next (key, answer) to be complete. TimeoutError after ``timeout`` seconds (the request goes on); LookupError when nothing is pending."""
        if not self.pending:
            raise LookupError("nothing was submitted")
        if not self._done:
            self._collect(timeout)
        return self._done.popleft()

    def close(self) -> None:
        """End every worker at once; unanswered requests are forgotten."""
        for member in self._members:
            if member is not None:
                member.end()
        self._members = [None] * self.size
        self._working.clear()
        self._waiting.clear()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _hire(self, number: int) -> Member:
        """A new worker for place ``number``."""

    @abstractmethod
    def _ready(self, members: Sequence[Member], timeout: float | None) -> Sequence[Member]:
        """Those of ``members`` that have answered or died; waits for one, at most ``timeout`` seconds."""

    def _hand_out(self) -> None:
        for number in range(self.size):
            if self._waiting and number not in self._working:
                key, request = self._waiting.popleft()
                try:
                    self._send(number, request)
                except WorkerLost as error:
                    self._done.append((key, error))
                else:
                    self._working[number] = key

    def _send(self, number: int, request: Any) -> None:
        member = self._members[number]
        if member is not None:
            try:
                return member.send(request)
            except WorkerLost:  # died while idle: not this request's fault
                member.end()
        member = self._members[number] = self._hire(number)
        return member.send(request)

    def _collect(self, timeout: float | None) -> None:
        busy = {id(member): number for number in self._working if (member := self._members[number]) is not None}
        ready = self._ready([m for m in self._members if id(m) in busy and m is not None], timeout)
        if not ready:
            raise TimeoutError(f"no worker answered within {timeout:g} s")
        for member in ready:
            number = busy[id(member)]
            try:
                answer = member.receive()
            except WorkerLost as error:
                answer = error
                member.end()
                self._members[number] = None
            self._done.append((self._working.pop(number), answer))
        self._hand_out()
