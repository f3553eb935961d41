"""Light augmentation of training images, by the name of ``task.augment``. Imports torch and numpy only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 0.08  # share of the width, either way
DEGREES = 12.0
ZOOM = 0.12  # 0.88 to 1.12
MARGIN = 8  # random crops reach an eighth of the width over the border (4 of CIFAR's 32 pixels, He et al. 2016, section 4.2)


def affine(images: Tensor, generator: np.random.Generator, flip: bool) -> Tensor:
    """Small shifts, turns and zooms: one random affine map per image, bilinear, border repeated; (N, C, H, W) -> the same shape. All randomness comes from ``generator``."""
    count = len(images)
    angle = np.deg2rad(generator.uniform(-DEGREES, DEGREES, count))
    zoom = generator.uniform(1 - ZOOM, 1 + ZOOM, count)
    shift = generator.uniform(-2 * SHIFT, 2 * SHIFT, (count, 2))  # affine_grid's coordinates span -1..1
    mirror = generator.choice([-1.0, 1.0], count) if flip else np.ones(count)
    rows = [[mirror * np.cos(angle) * zoom, -np.sin(angle) * zoom, shift[:, 0]], [mirror * np.sin(angle) * zoom, np.cos(angle) * zoom, shift[:, 1]]]
    theta = torch.from_numpy(np.array(rows, dtype=np.float32)).permute(2, 0, 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def crop(images: Tensor, generator: np.random.Generator, flip: bool) -> Tensor:
    """A random shift of up to an eighth of the width either way, what comes in is 0.5 grey; (N, C, H, W) -> the same shape."""
    count, _, height, width = images.shape
    margin = max(1, width // MARGIN)
    padded = F.pad(images, (margin,) * 4, value=0.5)
    rows = torch.from_numpy(generator.integers(0, 2 * margin + 1, count))[:, None] + torch.arange(height)
    columns = torch.from_numpy(generator.integers(0, 2 * margin + 1, count))[:, None] + torch.arange(width)
    if flip:
        mirrored = torch.from_numpy(generator.random(count) < 0.5)[:, None]
        columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def none(images: Tensor, generator: np.random.Generator, flip: bool) -> Tensor:
    """The images as they are, mirrored by chance where that keeps their meaning."""
    mirrored = torch.from_numpy(generator.random(len(images)) < 0.5) if flip else torch.zeros(len(images), dtype=torch.bool)
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


AUGMENT: dict[str, Callable[[Tensor, np.random.Generator, bool], Tensor]] = {"affine": affine, "crop": crop, "none": none}
