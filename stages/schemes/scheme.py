"""LayerScheme and Scheme: which pruning each layer gets, as plain immutable values. Imports graph and errors only, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.errors import ArtifactError
from stages.graph import FILTER_TYPES

SCHEMES = ("none", "filter", "block-punched", "pattern", "block-based")
PATTERN_WEIGHTS = 4  # weights that a pattern keeps in a 3x3 kernel (PatDNN); 2.25x on its own


@dataclass(frozen=True)
class LayerScheme:
    """How one layer is pruned.

    ``LayerScheme("keep", "block-punched", 3.0, 8)`` on a convolution with weight (64, 32, 3, 3): the 64 filters form 8 groups of 8 consecutive filters; in each group
    96 of the 32 * 9 = 288 positions (input channel, kernel row, kernel column) are kept, the same ones in all 8 filters (block-punched, NPAS section 4.1).

    ``LayerScheme("keep", "block-punched", 3.0, 8, 4)`` prunes each kernel position for 4 consecutive input channels of the 8 filters at once: 24 of 72 units (block of channels, row, column).

    * ``filter_type``: one of FILTER_TYPES (stages.graph.filter_types; NPAS section 5.2). Of a layer that is replaced, the rest prunes every convolution of the replacement that it can (see ``resolve``).
    * ``pruning``: "none"; "filter" (whole output channels); "block-punched" (convolutions); "pattern" (3x3 convolutions: every kept kernel keeps 4 weights of one of a few patterns,
      other kernels vanish; patterns and kept kernels are shared by the filters of a block); "block-based" (linear layers: the matrix is cut into blocks of ``block`` rows and
      ``channels`` columns; what is removed is a column of a block (8 x 1), a row of a block (1 x 16) or a whole block (8 x 4)).
    * ``rate``: weights before / weights after, >= 1. A group of n units keeps ``max(1, round(n / rate))``.
    * ``block``: filters (rows) per group; the last group may be smaller. 0 where it has no meaning (none, filter).
    * ``channels``: input channels (columns) per unit of block-punched and block-based, the last unit may be smaller; 1 elsewhere. YOLObile's blocks are 8 x 4.
    """

    filter_type: str = "keep"
    pruning: str = "none"
    rate: float = 1.0
    block: int = 0
    channels: int = 1

    @property
    def label(self) -> str:
        """Short text for node labels and tables: "none", "filter 2x", "block-punched/8x4 3x", "1x1", "1x1|block-punched/8 3x", "skip"."""
        pruned = "" if self.pruning == "none" else f"{self.pruning}{f'/{self.size}' if self.block else ''} {self.rate:g}x"
        kept = "" if self.filter_type == "keep" else self.filter_type
        return "|".join(filter(None, (kept, pruned))) or "none"

    @property
    def size(self) -> str:
        """The block in words: "8" filters, or "8x4" filters and input channels."""
        return f"{self.block}x{self.channels}" if self.channels > 1 else str(self.block)

    def to_json(self) -> dict[str, Any]:
        """Plain data for scheme.json."""
        return {"filter_type": self.filter_type, "scheme": self.pruning, "rate": self.rate, "block": self.block, "channels": self.channels}

    @staticmethod
    def from_json(d: Mapping[str, Any]) -> LayerScheme:
        """The inverse of to_json; files from before there were blocks of channels have none. ArtifactError on an unknown scheme or rate."""
        try:
            made = LayerScheme(str(d["filter_type"]), str(d["scheme"]), float(d["rate"]), int(d["block"]), int(d.get("channels", 1)))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"A layer of the scheme can't be read: {error!r}.", "Run 'npas search-scheme' again.") from None
        if made.filter_type not in FILTER_TYPES or made.pruning not in SCHEMES or made.rate < 1 or made.block < 0 or made.channels < 1:
            raise ArtifactError(f"A layer of the scheme has impossible values: {dict(d)}.", "Run 'npas search-scheme' again.")
        return made


DENSE = LayerScheme()


@dataclass(frozen=True)
class Scheme:
    """One LayerScheme per prunable layer, by module path; a layer that isn't named stays dense.

    ``coupled`` lists the sets of modules whose output channels must be removed together under filter pruning (residual sums, squeeze-and-excitation gates, depthwise
    followers and batch norms): each entry maps the module paths of one channel class to their kind, e.g. ``{"conv1": "conv2d", "bn1": "batch_norm", "dw": "depthwise"}``.
    A module of which only some channels belong to the class has their places behind its kind ("batch_norm 64:96", see stages.graph.channels.places).
    Two filter-pruned layers of one class are pruned to the same channels at the larger of their rates; a class in which some producing layer is not filter-pruned stays whole.
    """

    layers: Mapping[str, LayerScheme] = field(default_factory=dict)
    coupled: tuple[Mapping[str, str], ...] = ()

    def __getitem__(self, name: str) -> LayerScheme:
        return self.layers.get(name, DENSE)

    @property
    def filter_types(self) -> dict[str, str]:
        """The layers that are replaced: module path -> filter type."""
        return {name: s.filter_type for name, s in self.layers.items() if s.filter_type != "keep"}

    def to_json(self) -> dict[str, Any]:
        """Plain data: ``{"layers": {...}, "coupled": [...]}``."""
        return {"layers": {name: s.to_json() for name, s in self.layers.items()}, "coupled": [dict(c) for c in self.coupled]}

    @staticmethod
    def from_json(d: Mapping[str, Any]) -> Scheme:
        """The inverse of to_json."""
        if not isinstance(d.get("layers"), Mapping):
            raise ArtifactError("The scheme names no layers.", "Run 'npas search-scheme' again.")
        return Scheme({name: LayerScheme.from_json(s) for name, s in d["layers"].items()}, tuple(dict(c) for c in d.get("coupled", ())))
