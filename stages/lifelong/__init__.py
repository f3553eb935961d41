"""Several tasks in one network, learnt one after the other, none at an earlier one's expense (LPS, Wang et al. 2020, arXiv 2012.06956)."""

from stages.lifelong.commons import Commons, Learnt, Part
from stages.lifelong.found import check_fits, found
from stages.lifelong.learn import CHECKPOINTS, learn

__all__ = ["CHECKPOINTS", "Commons", "Learnt", "Part", "check_fits", "found", "learn"]
