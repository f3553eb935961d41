"""One-shot magnitude pruning, then retraining under the masks (Han et al. 2015, section 3). Imports pruners/base and schemes of npas."""

from __future__ import annotations

from torch import nn

from stages.config import SearchPruner
from stages.pruners.base import Pruner
from stages.schemes import Scheme, make_masks


class Magnitude(Pruner):
    """All at once before the first step: the simplest, and the yardstick of the others."""

    def __init__(self, module: nn.Module, scheme: Scheme, settings: SearchPruner):
        super().__init__(module, scheme, settings)
        self.set_masks(make_masks(module, scheme))
