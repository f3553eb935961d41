"""Pruning schemes as values, and the masks that they mean."""

from typing import TYPE_CHECKING

from stages.schemes.rules import PATTERN_RATE, kept_count, legal_schemes, resolve, uniform_scheme
from stages.schemes.scheme import DENSE, PATTERN_WEIGHTS, SCHEMES, LayerScheme, Scheme

if TYPE_CHECKING:
    from stages.schemes.prune import apply_masks, make_masks, prune_
    from stages.schemes.verify import check_zeros

__all__ = [
    "DENSE", "PATTERN_RATE", "PATTERN_WEIGHTS", "SCHEMES", "LayerScheme", "Scheme", "apply_masks", "check_zeros", "kept_count", "legal_schemes", "make_masks", "prune_", "resolve", "uniform_scheme",
]  # fmt: skip


def __getattr__(name: str) -> object:  # torch is imported only by those who prune
    if name in ("make_masks", "apply_masks", "prune_"):
        from stages.schemes import prune

        return getattr(prune, name)
    if name == "check_zeros":
        from stages.schemes.verify import check_zeros

        return check_zeros
    raise AttributeError(name)
