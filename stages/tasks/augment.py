"""Light augmentation of training images: small shifts, rotations and zooms, and mirror images where the data set allows. Imports torch and numpy only."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 0.08  # share of the width, either way
DEGREES = 12.0
ZOOM = 0.12  # 0.88 to 1.12


def augment(images: Tensor, generator: np.random.Generator, flip: bool) -> Tensor:
    """One random affine map per image, bilinear, border repeated; (N, C, H, W) -> the same shape. All randomness comes from ``generator``."""
    count = len(images)
    angle = np.deg2rad(generator.uniform(-DEGREES, DEGREES, count))
    zoom = generator.uniform(1 - ZOOM, 1 + ZOOM, count)
    shift = generator.uniform(-2 * SHIFT, 2 * SHIFT, (count, 2))  # affine_grid's coordinates span -1..1
    mirror = generator.choice([-1.0, 1.0], count) if flip else np.ones(count)
    rows = [[mirror * np.cos(angle) * zoom, -np.sin(angle) * zoom, shift[:, 0]], [mirror * np.sin(angle) * zoom, np.cos(angle) * zoom, shift[:, 1]]]
    theta = torch.from_numpy(np.array(rows, dtype=np.float32)).permute(2, 0, 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
