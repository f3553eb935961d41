"""Image data sets: the embedded digits, an image folder, or the user's arrays. Imports errors and tasks/imports only of npas.

Whatever the source, images are float32 (N, 3, size, size) in 0..1 and labels int64 (N,); grey images repeat their channel. The three splits are disjoint: "train" is learnt from,
"val" decides between candidates, "test" is only reported.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.errors import UsageError
from stages.tasks.imports import describe, is_reference, resolve

SPLITS = ("train", "val", "test")
STATISTICS_SAMPLE = 1024  # training images from which mean and deviation are computed
CACHE_BYTES = 1 << 30  # decoded images of a folder that are kept in memory


class Images(Protocol):
    """One split: labels, and images by index."""

    labels: Tensor

    def take(self, indices: Sequence[int]) -> Tensor:
        """float32 (len(indices), 3, size, size) in 0..1."""


@dataclass(frozen=True)
class Data:
    """The splits by name, the class names, whether a mirrored image keeps its meaning (digits don't), and what the images are normalised with, where that is given."""

    splits: Mapping[str, Images]
    classes: tuple[str, ...]
    flip: bool
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, each (3,): those given, else over (at most STATISTICS_SAMPLE images of) the training split."""
        if self.mean is not None and self.std is not None:
            return torch.tensor(self.mean), torch.tensor(self.std)
        train = self.splits["train"]
        count = len(train.labels)
        step = max(1, count // STATISTICS_SAMPLE)
        images = train.take(range(0, count, step))
        return images.mean((0, 2, 3)), images.std((0, 2, 3)).clamp_min(1e-3)


class Memory:
    """A split held in memory, (N, 3, size, size): float32 in 0..1, or uint8 0..255 (a quarter of the room)."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels

    def take(self, indices: Sequence[int]) -> Tensor:
        """The images of these indices."""
        taken = self.images[torch.as_tensor(list(indices), dtype=torch.int64)]
        return taken.float().div_(255) if taken.dtype == torch.uint8 else taken


class Files:
    """A split of image files: decoded when first used, resized to fill ``size`` and cropped at the centre; kept as bytes while CACHE_BYTES last."""

    def __init__(self, paths: Sequence[Path], labels: Tensor, size: int):
        self.paths, self.labels, self.size = list(paths), labels, size
        self._kept: OrderedDict[int, Tensor] = OrderedDict()
        self._room = CACHE_BYTES // (3 * size * size)

    def take(self, indices: Sequence[int]) -> Tensor:
        """The images of these indices; UsageError names a file that can't be decoded."""
        return torch.stack([self._load(int(i)) for i in indices]).permute(0, 3, 1, 2).float().div_(255)

    def _load(self, index: int) -> Tensor:
        kept = self._kept.get(index)
        if kept is None:
            kept = torch.from_numpy(decode(self.paths[index], self.size))
            if len(self._kept) < self._room:
                self._kept[index] = kept
        return kept


def decode(path: Path, size: int) -> np.ndarray:
    """An image file as uint8 (size, size, 3)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return np.array(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow reports damaged files in all these ways
        raise UsageError(f"Can't read the image {path}: {describe(error)}.", "Delete or replace the file.") from None


def stratified(labels: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Indices cut into parts: every class is shuffled and cut in proportion to ``fractions`` (which sum to 1), and each part is shuffled again."""
    generator = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    bounds = np.cumsum(fractions)[:-1]
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        for part, piece in zip(parts, np.split(members, np.round(bounds * len(members)).astype(int)), strict=True):
            part.append(piece)
    return [generator.permutation(np.concatenate(part)) for part in parts]


def load_data(spec: str, size: int, seed: int) -> Data:
    """The data set that ``task.data`` names: "digits", a folder, or ``package.module:callable``."""
    if spec == "digits":
        return digits(size, seed)
    if is_reference(spec) and not Path(spec).is_dir():
        return from_callable(spec, size)
    from stages.tasks.folder import image_folder

    return image_folder(Path(spec), size, seed)


def digits(size: int, seed: int) -> Data:
    """scikit-learn's 1,797 handwritten digits (Alpaydin and Kaynak 1998), 8x8 grey, enlarged bilinearly: 1,200 train, about 297 val, 300 test, stratified."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    grey = torch.from_numpy(images.astype(np.float32) / 16).view(-1, 1, 8, 8)
    pixels = F.interpolate(grey, (size, size), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    targets = torch.from_numpy(labels.astype(np.int64))
    total = len(labels)
    parts = stratified(labels, (1200 / total, 297 / total, 300 / total), seed)
    splits = {name: Memory(pixels[part].contiguous(), targets[part]) for name, part in zip(SPLITS, parts, strict=True)}
    return Data(splits, tuple(str(i) for i in range(10)), flip=False)


def from_callable(spec: str, size: int) -> Data:
    """The user's data: ``callable()`` returns ``{"train": (images, labels), "val": (images, labels), "test": (images, labels)}``.

    Images are arrays or tensors: uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3), or float (N, 1, H, W) or (N, 3, H, W) in 0..1. Labels are whole numbers from 0, shape (N,).
    Optional entries: "classes" lists their names; "flip": True says that a mirrored image keeps its meaning; "mean" and "std", three numbers each for images in 0..1, are what a
    pretrained network's images were normalised with (else they are computed from the training images).
    """
    call: Callable[[], Any] = resolve(spec, "task.data")
    try:
        found = call()
    except Exception as error:
        raise UsageError(f"'{spec}' of task.data raised {describe(error)}.", "Mend the function; -vv shows the traceback.") from error
    if not isinstance(found, Mapping) or any(name not in found for name in SPLITS):
        got = f"a mapping with {sorted(map(str, found))}" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise UsageError(f"'{spec}' of task.data returned {got}.", 'Return {"train": (images, labels), "val": (images, labels), "test": (images, labels)}.')
    splits = {name: _memory(found[name], f"split '{name}' of '{spec}'", size) for name in SPLITS}
    count = 1 + max(int(split.labels.max()) for split in splits.values())
    classes = tuple(map(str, found.get("classes", range(count))))
    if len(classes) < count:
        raise UsageError(f"'{spec}' of task.data names {len(classes)} classes, but labels go up to {count - 1}.", "List one name per label.")
    return Data(splits, classes, flip=bool(found.get("flip", False)), mean=_three(found, "mean", spec), std=_three(found, "std", spec))


def _three(found: Mapping[str, Any], name: str, spec: str) -> tuple[float, ...] | None:
    """The optional entry ``name``, one number per channel."""
    if found.get(name) is None or found.get("mean" if name == "std" else "std") is None:
        if found.get(name) is not None:
            raise UsageError(f"'{spec}' of task.data gives only one of mean and std.", "Give both, or none.")
        return None
    values = np.asarray(found[name], dtype=np.float64).reshape(-1)
    if values.shape != (3,) or not np.isfinite(values).all() or (name == "std" and (values <= 0).any()):
        raise UsageError(f"'{spec}' of task.data gives a {name} of {found[name]!r}.", "Give three numbers for red, green and blue in 0..1; std above 0.")
    return tuple(map(float, values))


def _memory(pair: Any, where: str, size: int) -> Memory:
    """Checked and converted arrays of one split."""
    try:
        images, labels = (torch.as_tensor(np.asarray(part)) for part in pair)
    except (TypeError, ValueError) as error:
        raise UsageError(f"The {where} is not a pair of arrays: {describe(error)}.", "Give (images, labels).") from None
    if images.dtype == torch.uint8 and images.ndim in (3, 4):
        images = (images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2)
        images = images if images.shape[1:] == (3, size, size) else images.float() / 255
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not (images.is_floating_point() or images.dtype == torch.uint8) or not len(images):
        raise UsageError(
            f"Images of the {where} have shape {tuple(images.shape)} and type {images.dtype}.", "Give uint8 (N, H, W, 3), or float (N, 3, H, W) in 0..1."
        )
    if images.is_floating_point() and not images.isfinite().all():
        raise UsageError(f"Images of the {where} hold values that are not finite.", "Clean the data.")
    if labels.shape != images.shape[:1] or labels.is_floating_point() or int(labels.min()) < 0:
        raise UsageError(
            f"Labels of the {where} have shape {tuple(labels.shape)} and type {labels.dtype}; there are {len(images)} images.",
            "Give whole numbers from 0, one per image.",
        )
    if images.dtype == torch.uint8:
        return Memory(images, labels.to(torch.int64))
    images = images.float()
    if images.shape[2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return Memory(images.expand(-1, 3, -1, -1).contiguous(), labels.to(torch.int64))
