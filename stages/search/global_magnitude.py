"""global-magnitude: one threshold for all weights of the network, bisected until the budget fits (CAT, section 3; of weights here, not of normalisation scales). Imports ladder, errors."""

from __future__ import annotations

import numpy as np

from stages.errors import UsageError
from stages.search.ladder import Ladders
from stages.search.space import Space

RESOLUTION = 512  # thresholds that are told apart


class GlobalMagnitude(Ladders):
    """Bisects the candidates that ``space.threshold`` gives for thresholds from 0 (nothing pruned) to 1; UsageError for a space that has none."""

    def __init__(self, space: Space, *args, **options):
        if space.threshold is None:
            raise UsageError(
                "The strategy 'global-magnitude' needs a space that says what one threshold for all weights means.", "Give Space(..., threshold=t -> choices), t from 0 to 1."
            )
        super().__init__(space, *args, ladders=[[space.threshold(float(t)) for t in np.linspace(0, 1, RESOLUTION)]], **options)
