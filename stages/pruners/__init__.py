"""Pruning algorithms, one a file, and the race between them. A new one is a subclass of Pruner, a line here and a name in config.SearchPruner."""

from stages.pruners.admm import Admm
from stages.pruners.base import Pruner
from stages.pruners.entry import Entry, Table
from stages.pruners.gradual import Gradual
from stages.pruners.magnitude import Magnitude
from stages.pruners.race import Outcome, race

PRUNERS: Table = {"magnitude": Magnitude, "gradual": Gradual, "admm": Admm}

__all__ = ["PRUNERS", "Entry", "Outcome", "Pruner", "race"]
