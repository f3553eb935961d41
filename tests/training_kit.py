"""What the tests of trainings share: a watcher that ends one in its middle."""

from __future__ import annotations

from stages.progress import Silent


class Killer(Silent):
    """Stops the training right after epoch ``last`` was saved, by raising ``error``."""

    def __init__(self, last: int, error: BaseException | type[BaseException] = KeyboardInterrupt):
        self.left, self.error = last, error

    def advance(self, line: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error
