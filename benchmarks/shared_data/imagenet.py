"""A thousand ImageNet images, one per class, and 1,000 of ten classes (Imagenette), 224x224. For ``task.data: benchmarks.shared_data.imagenet:lite`` or ``:turned``.

The images come from ImageNet's training set, which the networks have seen: they tell how much accuracy pruning costs, not how accurate a network is. train: 700 of the sample and
600 of Imagenette; val: 150 of the sample and 200 of Imagenette; test: the other 150 and 200, on which nothing is ever tuned.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np

from benchmarks.shared_data.place import decoded, place

SHORT, SIZE = 256, 224  # short side before the middle square is cut out
MIDDLE = 127 / 255


def lite() -> dict[str, Any]:
    """For EfficientNet-Lite: (x - 127) / 128."""
    return _data(turn=False, std=128 / 255)


def turned() -> dict[str, Any]:
    """For the MobileNetV2 whose kernels are turned by 180 degrees: so are the images; (x - 127) / 127.5."""
    return _data(turn=True, std=0.5)


def _data(turn: bool, std: float) -> dict[str, Any]:
    sample, train, val = (_read(name) for name in ("sample", "train", "val"))
    order = np.random.default_rng(0).permutation(len(sample[1]))
    half = np.random.default_rng(1).permutation(len(val[1]))
    cut = len(half) // 2
    splits = {
        "train": [_take(sample, order[:700]), train],
        "val": [_take(sample, order[700:850]), _take(val, half[:cut])],
        "test": [_take(sample, order[850:]), _take(val, half[cut:])],
    }
    joined = {name: (np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])) for name, parts in splits.items()}
    if turn:
        joined = {name: (np.ascontiguousarray(images[:, ::-1, ::-1]), labels) for name, (images, labels) in joined.items()}
    return {**joined, "classes": [str(i) for i in range(1000)], "flip": True, "mean": (MIDDLE,) * 3, "std": (std,) * 3}


def _take(pair: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pair[0][rows], pair[1][rows]


def _read(part: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, 224, 224, 3) and labels 0..999 of "sample" (one per class), "train" or "val" (Imagenette)."""
    archive = zipfile.ZipFile(place("imagenet-sample", "imagenet-sample-1000.zip") if part == "sample" else place("imagenette", "imagenette160-subset.zip"))
    names = [n for n in sorted(archive.namelist()) if n.lower().endswith((".jpg", ".jpeg")) and (part == "sample" or n.startswith(part))]
    labels = np.array([int(n[:4] if part == "sample" else n.split("/")[1][:4]) for n in names], np.int64)
    return decoded(f"imagenet-{part}", lambda: np.stack([_decode(archive.read(n)) for n in names])), labels


def _decode(content: bytes) -> np.ndarray:
    from PIL import Image

    image = Image.open(io.BytesIO(content)).convert("RGB")
    scale = SHORT / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))
