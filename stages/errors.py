"""Errors that a user can act on: one sentence, one hint, one exit code. Imports nothing of npas."""

from __future__ import annotations


class NpasError(Exception):
    """Something a person can put right.

    ``message`` is one sentence that says what is wrong; ``hint`` one that says what to do next.
    The command line prints both and leaves with ``exit_code``; no traceback is shown unless -vv.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self):  # workers send errors between processes
        return (type(self), (self.message, self.hint))


class UsageError(NpasError):
    """Bad flag, bad value, unknown name, missing or damaged input (exit 2)."""

    exit_code = 2


class ArtifactError(UsageError):
    """An artifact is missing, damaged, or of another version (exit 2)."""


class UnsupportedOperator(UsageError):
    """The network contains an operator that npas can't trace, prune or compile (exit 2)."""


class InfeasibleBudget(NpasError):
    """No candidate meets the latency budget; ``best_ms`` is the best that was reached (exit 3)."""

    exit_code = 3

    def __init__(self, message: str, hint: str = "", best_ms: float | None = None):
        super().__init__(message, hint)
        self.best_ms = best_ms

    def __reduce__(self):
        return (type(self), (self.message, self.hint, self.best_ms))


class DeviceNotFound(NpasError):
    """No such device, or several match (exit 4)."""

    exit_code = 4


class DeviceUnauthorised(NpasError):
    """The phone has not accepted this computer's key (exit 5)."""

    exit_code = 5


class DeviceLost(NpasError):
    """The device went away during a run; what it had measured is kept (exit 6)."""

    exit_code = 6


class DeviceFull(NpasError):
    """No space left on the device (exit 7)."""

    exit_code = 7


class RunnerCrashed(NpasError):
    """The program that runs the model died or timed out (exit 8)."""

    exit_code = 8


class WorkerLost(NpasError):
    """A worker process or machine died at its job (exit 1 where that isn't the job's failure alone)."""


class InvalidMeasurement(NpasError):
    """Measured, but not to be trusted: throttled, affinity not honoured, too few runs (exit 9)."""

    exit_code = 9


class DeviceHot(InvalidMeasurement):
    """Too hot to be measured now (exit 9)."""


class WrongOutput(NpasError):
    """The compiled network does not compute what PyTorch computes (exit 10)."""

    exit_code = 10


class TooSlow(NpasError):
    """Slower than --fail-above allows (exit 11)."""

    exit_code = 11


class Interrupted(NpasError):
    """Stopped by the user; what was computed is kept (exit 130)."""

    exit_code = 130
