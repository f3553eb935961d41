"""Pruning algorithms, one a file, and the race between them. A new one is a subclass of Pruner, a line here and a name in config.SearchPruner."""

from stages.pruners.admm import Admm
from stages.pruners.base import Pruner
from stages.pruners.dais import Dais
from stages.pruners.dynamic_pattern import DynamicPattern
from stages.pruners.entry import Entry, Table
from stages.pruners.geometric_median import GeometricMedian
from stages.pruners.global_scale import GlobalScale
from stages.pruners.gradual import Gradual
from stages.pruners.group_lasso import GroupLasso
from stages.pruners.least_squares import LeastSquares
from stages.pruners.magnitude import Magnitude
from stages.pruners.race import Outcome, race
from stages.pruners.taylor import Taylor

PRUNERS: Table = {
    "magnitude": Magnitude, "least-squares": LeastSquares, "gradual": Gradual, "admm": Admm, "group-lasso": GroupLasso, "geometric-median": GeometricMedian, "taylor": Taylor,
    "dynamic-pattern": DynamicPattern, "dais": Dais, "global-scale": GlobalScale,
}  # fmt: skip

__all__ = ["PRUNERS", "Entry", "Outcome", "Pruner", "race"]
