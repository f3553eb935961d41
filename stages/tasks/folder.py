"""An image folder as data: train/ and val/ with one subfolder per class, test/ optional. Imports errors and tasks/data only of npas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stages.errors import UsageError
from stages.tasks.data import Data, Files, stratified

SUFFIXES = (".png", ".jpg", ".jpeg")
VAL_SHARE = 0.15  # of each training class, when val/ has to serve as test


def image_folder(root: Path, size: int, seed: int) -> Data:
    """Splits of ``root``. Without test/, val/ is the test split, and val is carved out of train/ by ``seed``, so that no candidate is ever chosen by its test accuracy."""
    if not root.is_dir():
        raise UsageError(f"No data set '{root}': it is neither 'digits' nor a folder.", "Give a folder with train/ and val/, or package.module:callable.")
    classes = _classes(root / "train")
    train = _files(root / "train", classes, size)
    val = _files(root / "val", classes, size)
    if (root / "test").is_dir():
        return Data({"train": _shuffled(train, seed), "val": val, "test": _files(root / "test", classes, size)}, classes, flip=True)
    labels = train.labels.numpy()
    rare = [classes[i] for i in range(len(classes)) if (labels == i).sum() * VAL_SHARE < 0.5]
    if rare:
        raise UsageError(
            f"Class '{rare[0]}' of {root / 'train'} has too few images to carve a validation split out of it.",
            f"Add a {root / 'test'} folder, or at least 4 images per class.",
        )
    learnt, held = stratified(labels, (1 - VAL_SHARE, VAL_SHARE), seed)
    return Data({"train": _subset(train, learnt), "val": _subset(train, held), "test": val}, classes, flip=True)


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise UsageError(f"The data set has no folder {folder}.", "Give a folder with train/ and val/, one subfolder per class in each.")
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if len(classes) < 2:
        raise UsageError(
            f"{folder} has {len(classes)} class folder{'' if len(classes) == 1 else 's'}; at least 2 are needed.",
            "Put the images of each class into a subfolder of its own.",
        )
    return classes


def _files(folder: Path, classes: Sequence[str], size: int) -> Files:
    """The images of one split, class by class, names sorted."""
    if different := sorted(set(_classes(folder)) ^ set(classes)):
        raise UsageError(f"{folder} and the train folder beside it have different classes: {', '.join(different[:5])}.", "Give both the same subfolders.")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not images:
            raise UsageError(f"{folder / name} holds no PNG or JPEG image.", "Add images, or delete the folder in every split.")
        paths += images
        labels += [label] * len(images)
    return Files(paths, torch.tensor(labels, dtype=torch.int64), size)


def _subset(files: Files, indices: np.ndarray) -> Files:
    return Files([files.paths[i] for i in indices], files.labels[torch.from_numpy(indices)], files.size)


def _shuffled(files: Files, seed: int) -> Files:
    """So that the first N images (task.train_limit) are of all classes."""
    return _subset(files, np.random.default_rng(seed).permutation(len(files.paths)))
