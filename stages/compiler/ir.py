"""The compiler's own values: Value (an activation), Step (one fused operation on activations), Program, and Layout (where a Value's floats lie). Imports numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from stages.schemes.scheme import DENSE, LayerScheme

Epilogue = tuple[tuple[Any, ...], ...]
"""What happens to a Step's result before it is stored, in order. Items: ("relu",) and the other activations with their parameters, ("scale", 0.5), ("shift", 3.0),
("affine",) (per channel, with the Step's ``scale`` and ``shift``), and ("add", k), ("sub", k), ("rsub", k), ("mul", k), ("div", k), ("rdiv", k) with the k-th further operand
(``inputs[1 + k]``), which has the output's shape or is one number a channel (height = width = 1)."""


COSTLY = frozenset({"sigmoid", "silu", "tanh", "gelu", "mish", "elu", "softplus"})


def costly(items: Epilogue) -> bool:
    """Whether an epilogue is so long that it belongs in a loop of its own, not once for every accumulator."""
    return any(item[0] in COSTLY for item in items)


Shape = tuple[int, int, int, int]
"""Images, channels, rows, columns."""


@dataclass(frozen=True)
class Value:
    """An activation: logical shape (n, c, h, w); a matrix (n, c) has h = w = 1."""

    name: str
    shape: tuple[int, int, int, int]


@dataclass(frozen=True)
class Step:
    """One operation of the lowered network.

    ``op``: "conv" (weight (o, i, kh, kw), also every linear layer), "depthwise" (weight (c, 1, kh, kw)), "pool", "elementwise" (nothing but its epilogue), "copy" (parts of tensors:
    concat, slice, pad, shuffle), "layer_norm" and "softmax" (over the channels of each pixel), "input" and "output" (from and to the caller's memory).
    Later passes add "relayout" and "space_to_depth" (arrange.py; a conv with ``attrs["folded"]`` reads the latter), "band" (bands.py), "sum" (split_k.py) and "conv_pool" (pools.py). ``inputs[0]`` is the operand, the others belong to the epilogue.
    ``attrs`` of conv and depthwise: stride, padding, dilation; of pool: kind ("max", "avg"), windows (rows and cols, see lower_layers.py); of layer_norm: eps; of copy: see kernels/copy.py.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    output: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    epilogue: Epilogue = ()
    module: str = ""
    scheme: LayerScheme = DENSE
    macs: int = 0


@dataclass(frozen=True)
class Program:
    """Steps in an order in which they can run, and the Values they read and write. ``inputs`` and ``outputs``: (Value name, the shape that the caller sees).

    ``views`` (made by share.py): Values that lie in a buffer with others, as (name in ``buffers``, first channel). All Values of a buffer need one kind of Layout and one frame.
    """

    steps: tuple[Step, ...]
    values: Mapping[str, Value]
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    views: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    buffers: Mapping[str, Value] = field(default_factory=dict)

    @cached_property
    def readers(self) -> dict[str, tuple[Step, ...]]:
        """For each Value, the steps that read it, in order."""
        found: dict[str, list[Step]] = {name: [] for name in self.values}
        for step in self.steps:
            for name in dict.fromkeys(step.inputs):
                if name in found:
                    found[name].append(step)
        return {name: tuple(steps) for name, steps in found.items()}


@dataclass(frozen=True)
class Layout:
    """Where a Value's floats lie in the workspace.

    Pixel-major (NHWC): ``pitch`` floats from pixel to pixel, a zeroed frame of ``border`` = (top, left, bottom, right) pixels. ``part`` of a pixel's floats belong to this Value (its channels
    rounded up to a vector): no kernel may write the others; 0 means all of them. With ``planar`` the order is NCHW, the frame included, and ``pitch`` is 1. Example: shape (1, 24, 56, 56), pitch 24, border (1, 1, 1, 1): 58 * 58 * 24 floats; pixel (0, 0) begins at float 59 * 24.
    A planar Layout may leave ``lead`` floats before the first row of a plane and take ``plane`` floats for each (kernels/planar.py says why). Threads divide each plane into ``parts`` of as many rows; 1: they
    divide the planes.
    """

    shape: tuple[int, int, int, int]
    pitch: int
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    planar: bool = False
    part: int = 0
    lead: int = 0
    plane: int = 0
    parts: int = 1

    @property
    def width(self) -> int:
        """Floats of a pixel that belong to this Value."""
        return self.part or self.pitch

    @property
    def rows(self) -> int:
        """Height with the frame."""
        return self.shape[2] + self.border[0] + self.border[2]

    @property
    def cols(self) -> int:
        """Width with the frame."""
        return self.shape[3] + self.border[1] + self.border[3]

    @property
    def row(self) -> int:
        """Floats from one row to the next."""
        return self.cols * self.pitch

    @property
    def channel(self) -> int:
        """Floats from one channel to the next."""
        if not self.planar:
            return 1
        return self.plane or self.rows * self.cols

    @property
    def image(self) -> int:
        """Floats from one image of the batch to the next."""
        return self.channel * self.shape[1] if self.planar else self.rows * self.row

    @property
    def origin(self) -> int:
        """Float at which channel 0 of pixel (0, 0) lies."""
        return self.lead + self.border[0] * self.row + self.border[1] * self.pitch

    @property
    def size(self) -> int:
        """Floats in all. Behind the last plane there is room for vectors that are read beyond its end."""
        return self.shape[0] * self.image + (self.border[0] * self.cols + BEYOND if self.plane else 0)

    @property
    def view(self) -> tuple[int, int, int, int]:
        """(origin, image, row, pixel) strides, for walks over pixels."""
        return (self.origin, self.image, self.row, self.pitch)


BEYOND = 64  # floats: more than any vector kernel reads beyond the end of a plane
View = tuple[int, int, int, int]


def merge(dims: tuple[int, int, int], views: tuple[View, ...]) -> tuple[tuple[int, int, int], tuple[View, ...]]:
    """The same walk over (images, rows, columns) with fewer, longer rows, where every view lies dense enough.

    Example: (1, 7, 7) over one unframed view (0, 49 * 96, 7 * 96, 96) becomes (1, 1, 49) over (0, 0, 0, 96).
    """
    n, h, w = dims
    if h > 1 and all(row == w * pixel for _, _, row, pixel in views):
        w, h = h * w, 1
        views = tuple((origin, image, 0, pixel) for origin, image, _, pixel in views)
    if n > 1 and w == 1 and h == 1:  # one pixel an image: images are the pixels
        return (1, 1, n), tuple((origin, 0, 0, image) for origin, image, _, _ in views)
    if n > 1 and h == 1 and all(image == w * pixel for _, image, _, pixel in views):
        return (1, 1, n * w), tuple((origin, 0, 0, pixel) for origin, _, _, pixel in views)
    return (n, h, w), views


def round_up(count: int, quantum: int) -> int:
    """The next multiple of ``quantum``."""
    return math.ceil(count / quantum) * quantum
