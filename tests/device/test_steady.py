"""A measurement that may not be trusted is taken again, whole."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.devices import TimingProtocol
from stages.devices.steady import measure_steadily


class Said(list):
    def say(self, line: str) -> None:
        self.append(line)


@pytest.mark.parametrize(("valid", "used", "warned"), [([True], 1, 0), ([False, True], 2, 1), ([False, False, False, True], 3, 3)])
def test_the_first_valid_one_counts(valid, used, warned):
    sessions = [SimpleNamespace(valid=v, reasons=() if v else ("drift",), number=k) for k, v in enumerate(valid, 1)]
    rest = iter(sessions)
    said = Said()
    measured = measure_steadily(SimpleNamespace(measure=lambda *_: next(rest)), [Path("a.so")], [], TimingProtocol(), said)
    assert measured.number == used
    assert len(said) == warned and all("drift" in line for line in said)
