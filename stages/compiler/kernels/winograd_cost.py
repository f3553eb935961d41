"""Which Winograd kernel a convolution gets, and whether it beats the gather kernel: estimates in processor cycles. Imports numpy only.

Fitted to one Zen 4 core (benchmarks/winograd.py), weights coming from main memory as they do in a large network: the estimates of the 3x3 layers of vgg16 and resnet18 are within 14 % of the
measured times, and 18 % low at 224x224, where inputs and results come from main memory too, which no estimate counts. On other processors they only rank. What memory costs is the target's (Target.reach).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np

from stages.compiler.kernels import packing
from stages.compiler.kernels.units import IDLE, split
from stages.compiler.kernels.winograd_shape import Blocking, Shape, panel
from stages.compiler.target import Reach, Target
from stages.compiler.tiles import cycles

TRANSFORM = {
    (2, 2): 65.0,
    (4, 2): 110.0,
    (4, 4): 170.0,
    (5, 5): 350.0,
    (6, 6): 440.0,
}  # cycles per tile and vector (widest lanes), of the inputs as of the results
WEIGHTS = {
    (2, 2): 60.0,
    (4, 2): 80.0,
    (4, 4): 100.0,
    (5, 5): 150.0,
    (6, 6): 170.0,
}  # the same for the weights of one input channel, where they are transformed at run time
PREFERENCE = {
    (2, 2): 1.0,
    (4, 2): 1.03,
    (4, 4): 1.06,
    (5, 5): 1.09,
    (6, 6): 1.11,
}  # larger tiles cost precision and memory for weights: they must pay by that much
SUMS = 2.0  # cycles per vector of sums: set to zero, stored
PANEL = 15.0  # cycles per panel: addresses, loops
AHEAD = 0.5  # of memory and arithmetic, the share of the shorter that hides behind the longer where weights are transformed at run time
BESIDE = (1, 2, 4, 8)  # blocks of filters of a unit
CHUNKS = (8, 16)  # input channels whose weights are transformed at a time
MANY = 4 << 20  # bytes of transformed weights: below it does not pay to transform them at run time
L1_BYTES = 40 << 10  # of transformed weights, with what else is read meanwhile
SCRATCH = 8 << 20  # bytes that a thread may use


@cache
def choose(
    dims: tuple[int, int, int], channels: int, filters: int, target: Target, sizes: tuple[tuple[int, int], ...] = tuple(TRANSFORM)
) -> tuple[float, Shape]:
    """(cycles, the cheapest Shape with tiles of one of the ``sizes``)."""
    wanted = [s for s in options(dims, channels, filters, target) if s.blocking.m in sizes]
    best = min(wanted, key=lambda s: estimate(s, target) * PREFERENCE[s.blocking.m] * (1 + IDLE / s.units))
    return estimate(best, target), best


def options(dims: tuple[int, int, int], channels: int, filters: int, target: Target) -> list[Shape]:
    """The Shapes to choose from: for each size of tiles, those whose scratch memory isn't too much, or the least."""
    found = []
    for m in TRANSFORM:
        every = [Shape(dims, channels, filters, b) for b in _blockings(filters, target) if b.m == m]
        found += [s for s in every if s.scratch <= SCRATCH] or [min(every, key=lambda s: s.scratch)]
    late = [replace(s, blocking=replace(s.blocking, chunk=chunk)) for s in found if s.weights > MANY and s.blocking.beside == 1 for chunk in CHUNKS if chunk < channels]
    return found + late


def _blockings(filters: int, target: Target) -> Iterator[Blocking]:
    for lanes in target.narrow if filters % target.lanes else target.narrow[:1]:
        for vectors in (1, 2, 3, 4):
            if lanes * (vectors - 1) < filters or lanes == target.narrow[-1] and vectors == 1:
                for panels, m, beside in product((1, 2, 4, 8), TRANSFORM, BESIDE):
                    if beside == 1 or lanes * vectors * beside <= filters:
                        yield Blocking(*m, panels * panel(vectors, target), lanes, vectors, 0, beside)


def estimate(shape: Shape, target: Target) -> float:
    """Cycles of one thread, weights cold."""
    b = shape.blocking
    blocks = sum(count for _, _, count in shape.tile_blocks)
    chunks = -(-shape.channels // shape.chunk) if shape.chunk else 1
    products = 0.0
    for tiles, _, count in shape.tile_blocks:
        for size, _, panels in split(tiles, panel(b.vectors, target)):
            products += count * panels * (shape.channels * cycles(size, b.lanes, b.vectors, target) + chunks * (SUMS * size * b.vectors + PANEL))
    vectors = math.ceil(shape.channels / b.lanes) + math.ceil(shape.filters / b.lanes)
    halves = 1.0 if b.lanes == target.lanes and target.fused_narrow else 0.5  # cycles are counted in widest vectors of a processor that splits them in two
    spilled = target.reach.line * shape.places
    arithmetic = shape.places * shape.filter_units * b.beside * products + shape.tiles * vectors * (TRANSFORM[b.m] * halves + spilled)
    if shape.chunk:
        kept = 4 * shape.places * shape.chunk * shape.wide <= L1_BYTES
        arithmetic += blocks * shape.channels * shape.filter_units * b.vectors * (WEIGHTS[b.m] * halves + (0.0 if kept else spilled))
    memory = _memory(shape, blocks, target.reach)
    if shape.chunk:  # they are asked for while products are computed
        return _together(arithmetic, memory, AHEAD)
    return _together(arithmetic, memory, target.reach.hidden if b.vectors == 2 else 0.0)  # with one or four vectors a row the processor's prefetching was seen to fail


def _memory(shape: Shape, blocks: int, reach: Reach) -> float:
    """Cycles in which weights arrive, for each block of tiles anew, and transformed inputs that the second-level cache doesn't hold, for each block of filters."""
    cycles = shape.weights * (blocks if shape.weights > reach.near else 1) / reach.far
    if reach.again:
        cycles += shape.weights * (blocks - 1 if reach.second < shape.weights <= reach.near else 0) / reach.again
        products = 8 * shape.places * shape.q_pitch if shape.scratch - 4 * shape.q > reach.second else 0  # written and read
        cycles += ((4 * shape.q if shape.scratch > reach.second else 0) + products) * blocks * shape.filter_units / reach.again
    return cycles


def _together(arithmetic: float, memory: float, overlap: float) -> float:
    """Cycles of both, the shorter hidden behind the longer as far as ``overlap`` says."""
    return max(arithmetic, memory) + (1 - overlap) * min(arithmetic, memory)


def direct(weight: np.ndarray, dims: tuple[int, int, int], target: Target) -> float:
    """Cycles of the gather kernel with the zeros of ``weight`` (o, i, 3, 3) left out."""
    matrix = packing.positions(weight)
    return _together(packing.estimate(matrix, dims, target), np.count_nonzero(matrix) * 4 / target.reach.far, target.reach.hidden)
