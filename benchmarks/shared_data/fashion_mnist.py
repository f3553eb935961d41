"""Fashion-MNIST (Xiao et al. 2017) from its idx files, xz-packed. For ``task.data: benchmarks.shared_data.fashion_mnist:data``."""

from __future__ import annotations

import lzma
from typing import Any

import numpy as np

from benchmarks.shared_data.place import place

VAL = 5000  # the last training images


def data() -> dict[str, Any]:
    """55,000 training images, 5,000 as val, the 10,000 test images as test; 28x28 grey, which task.image_size enlarges."""
    (images, labels), test = split("train"), split("t10k")
    return {"train": (images[:-VAL], labels[:-VAL]), "val": (images[-VAL:], labels[-VAL:]), "test": test, "flip": True}


def split(name: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, 28, 28) and int64 labels (N,) of "train" or "t10k"."""
    images, labels = (lzma.decompress(place("fashion-mnist", f"{name}-{kind}.xz").read_bytes()) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
