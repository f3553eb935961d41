"""CIFAR-10 (Krizhevsky 2009) from sheets of 1,000 images in WebP. For ``task.data: benchmarks.shared_data.cifar10:data``."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.shared_data.place import decoded, place

VAL = 5000  # the last training images: they decide between candidates, and nothing is trained on them here (the pretrained networks have seen them)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the pretrained networks were trained with


def data() -> dict[str, Any]:
    """45,000 training images, 5,000 of the training set as val, and the 10,000 test images as test."""
    (images, labels), test = split("train"), split("test")
    return {
        "train": (images[:-VAL], labels[:-VAL]), "val": (images[-VAL:], labels[-VAL:]), "test": test,
        "classes": CLASSES, "flip": True, "mean": MEAN, "std": STD,
    }  # fmt: skip


def split(name: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, 32, 32, 3) and int64 labels (N,) of "train" or "test"."""
    labels = np.load(place("cifar10", "labels.npz"))[name].astype(np.int64)
    return decoded(f"cifar10-{name}", lambda: np.concatenate([_sheet(name, i) for i in range(len(labels) // 1000)])), labels


def _sheet(name: str, number: int) -> np.ndarray:
    from PIL import Image

    sheet = np.asarray(Image.open(place("cifar10", f"{name}_{number:02d}.webp")).convert("RGB"))
    return sheet.reshape(25, 32, 40, 32, 3).transpose(0, 2, 1, 3, 4).reshape(1000, 32, 32, 3)
