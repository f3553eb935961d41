"""Data sets as three tasks that arrive in turn: the first five classes, the other five, and all ten turned by 90 degrees. For ``task.data: benchmarks.in_turn:digits_low``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.shared_data import cifar10, fashion_mnist

SPLITS = ("train", "val", "test")
VAL = 500  # images of val at most: it only shows the curve


def digits() -> dict[str, Any]:
    """scikit-learn's digits, uint8 (N, 8, 8), cut as the embedded data set is."""
    from sklearn.datasets import load_digits

    from stages.tasks.data import stratified

    images, labels = load_digits(return_X_y=True)
    pixels, total = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), len(labels)
    return {name: (pixels[part], labels[part]) for name, part in zip(SPLITS, stratified(labels, (1200 / total, 297 / total, 300 / total), 0), strict=True)}


def cut(base: Callable[[], dict[str, Any]], low: int, high: int, turns: int) -> dict[str, Any]:
    """The classes ``low`` to ``high - 1`` of a data set, numbered from 0, every image turned by ``turns`` times 90 degrees."""
    found = base()
    for name in SPLITS:
        images, labels = found[name]
        chosen = np.flatnonzero((labels >= low) & (labels < high))[: VAL if name == "val" else None]
        found[name] = (np.ascontiguousarray(np.rot90(images[chosen], turns, (1, 2))), labels[chosen] - low)
    return found | ({"classes": found["classes"][low:high]} if "classes" in found else {})


digits_low, digits_high, digits_turned = partial(cut, digits, 0, 5, 0), partial(cut, digits, 5, 10, 0), partial(cut, digits, 0, 10, 1)
fashion_low, fashion_high, fashion_turned = (partial(cut, fashion_mnist.data, *how) for how in ((0, 5, 0), (5, 10, 0), (0, 10, 1)))
cifar10_low, cifar10_high, cifar10_turned = (partial(cut, cifar10.data, *how) for how in ((0, 5, 0), (5, 10, 0), (0, 10, 1)))
