"""Which filters share a block: the order of a network's channels in which its scheme keeps more of the weights' energy. Imports torch, graph values, masks and scheme values.

Blocks are consecutive filters, so the order of the channels decides which filters share their positions; the network's function and its speed don't depend on it (stages/graph/orders.py).
The kept energy is the sum of the squares of the weights that one-shot magnitude pruning keeps. It is raised by exchanges: each filter in turn changes places with the one that raises it most,
the positions of both blocks chosen anew (as Kernighan and Lin 1970 improve a partition, one exchange at a time), until no exchange helps. Balanced k-means with sets of positions as centres
(filters and positions in turns, each step exact) ends where it began on trained networks: it never sees what other positions would bring.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor, nn

from stages.graph import Graph
from stages.graph.orders import Orbit, orbits
from stages.schemes.masks import group_energy, masks_of, mine_patterns
from stages.schemes.rules import kept_units
from stages.schemes.scheme import LayerScheme, Scheme

PARTNERS = 8  # exchanges that are tried for a filter, those that lose least while positions stay; more of them find no more
EFFORT = 100_000_000  # most positions that are looked at for one set of channels: one to two seconds
OVERHEAD = 30_000  # positions that could be looked at in the time of what each filter needs anyway
EPSILON = 1e-7  # of the kept energy: a smaller gain is rounding


def regroup_(module: nn.Module, graph: Graph, scheme: Scheme, effort: int = EFFORT) -> dict[str, tuple[int, ...]]:
    """Reorder the channels of an unpruned ``module``, in place, so that ``scheme`` keeps more of its energy, never less; its function stays the same but for roundings. Deterministic.

    Returns what was reordered: name of the channels (the module that makes them first, with their places where not all of its channels are meant) -> for each place the channel that came there.
    Channels that several layers make (residual sums) get one order, the best for all together.
    """
    tensors, found = module.state_dict(), dict[str, tuple[int, ...]]()
    for orbit in orbits(graph):
        if not set(orbit.rows) | set(orbit.columns) <= set(tensors):
            continue  # a tensor of the graph's own can't be reordered in the module
        blocked = [_Blocked(path, rows, tensors, scheme) for path, rows in orbit.made.items() if scheme[path].block > 1]
        if not blocked:
            continue
        order = _exchanged(blocked, len(orbit), effort)
        before = _kept(_affected(orbit, scheme), tensors)
        orbit.permute(tensors, order)
        if _kept(_affected(orbit, scheme), tensors) <= before * (1 + EPSILON):
            orbit.permute(tensors, np.argsort(order))
        else:
            found[orbit.name] = tuple(order.tolist())
    return found


def kept_energy(tensors: Mapping[str, Tensor], scheme: Scheme) -> float:
    """The share of the squares of the weights that one-shot magnitude pruning keeps, over all layers that are pruned in blocks."""
    layers = {path: layer for path, layer in scheme.layers.items() if layer.block}
    return _kept(layers, tensors) / max(sum(float(tensors[f"{path}.weight"].double().square().sum()) for path in layers), 1e-300)


def _affected(orbit: Orbit, scheme: Scheme) -> dict[str, LayerScheme]:
    """The layers whose kept energy depends on the order: those that make the channels, and those that read them in blocks of input channels."""
    readers = [name.removesuffix(".weight") for name in orbit.columns]
    paths = [*(p for p in orbit.made if scheme[p].block), *(p for p in readers if scheme[p].channels > 1)]
    return {path: scheme[path] for path in paths}


def _kept(layers: Mapping[str, LayerScheme], tensors: Mapping[str, Tensor]) -> float:
    masks = masks_of(tensors, Scheme(layers))
    return sum(float(tensors[name].double().square()[mask].sum()) for name, mask in masks.items())


class _Blocked:
    """One layer of an orbit that is pruned in blocks, as the search sees it. float32: what is found is judged in float64.

    ``energy`` (channels of the orbit, positions); ``block_of`` (places): the block of each place, numbered from 0. Of the order so far: ``sums`` (blocks, positions), the energy of each block at
    each position, other channels' too; ``values`` (blocks), what each keeps; ``worth`` (channels, blocks), what each channel would keep in each block, positions as they are.
    """

    def __init__(self, path: str, rows: np.ndarray, tensors: Mapping[str, Tensor], scheme: Scheme):
        weight, self.layer = tensors[f"{path}.weight"].detach(), scheme[path]
        self.shape, self.kept = weight.shape, kept_units(self.layer, weight.shape)
        self.energy = weight[torch.from_numpy(rows)].square().flatten(1).numpy()
        blocks, self.block_of = np.unique(rows // self.layer.block, return_inverse=True)
        others = weight.clone()
        others[torch.from_numpy(rows)] = 0
        self.fixed = group_energy(others, self.layer.block)[torch.from_numpy(blocks)].float().numpy()
        self.patterns = mine_patterns(group_energy(weight, self.layer.block).view(-1, 9)).float().numpy() if self.layer.pruning == "pattern" else None
        self.sums, self.values, self.worth = self.fixed.copy(), np.zeros(len(blocks), np.float32), np.zeros((len(rows), len(blocks)), np.float32)
        self.put(np.arange(len(rows)), range(len(blocks)))

    def put(self, order: np.ndarray, blocks: Iterable[int]) -> None:
        """Take ``order`` for what stands in ``blocks``."""
        for b in blocks:
            self.sums[b] = self.fixed[b] + self.energy[order[self.block_of == b]].sum(0)
            self.values[b] = self.value(self.sums[b : b + 1])[0]
            self.worth[:, b] = self.energy @ self.mask(self.sums[b])

    def units(self, sums: np.ndarray) -> np.ndarray:
        """(blocks, positions) -> what stays or goes as one: (blocks, units)."""
        parts = sums.reshape(len(sums), self.shape[1], -1)
        if self.patterns is not None:
            return (parts @ self.patterns.T).max(2)
        if self.layer.channels == 1:
            return sums
        padded = np.pad(parts, ((0, 0), (0, -parts.shape[1] % self.layer.channels), (0, 0)))
        return padded.reshape(len(sums), -1, self.layer.channels, parts.shape[2]).sum(2).reshape(len(sums), -1)

    def value(self, sums: np.ndarray) -> np.ndarray:
        """The energy that blocks of these sums keep, (blocks,)."""
        units = self.units(sums)
        return np.partition(units, units.shape[1] - self.kept, 1)[:, units.shape[1] - self.kept :].sum(1)

    def mask(self, sums: np.ndarray) -> np.ndarray:
        """The positions that a block of these sums keeps, 0 or 1."""
        units, parts = self.units(sums[None])[0], sums.reshape(self.shape[1], -1)
        keep = np.zeros(len(units), np.float32)
        keep[np.argpartition(units, len(units) - self.kept)[len(units) - self.kept :]] = 1
        if self.patterns is not None:
            return (self.patterns[(parts @ self.patterns.T).argmax(1)] * keep[:, None]).ravel()
        return np.repeat(keep.reshape(-1, parts.shape[1]), self.layer.channels, 0)[: self.shape[1]].ravel()

    def promise(self, order: np.ndarray, place: int) -> np.ndarray:
        """The least that an exchange of ``place`` with each other place adds to the kept energy: what it adds while positions stay."""
        here, own = self.block_of[place], self.worth[order, self.block_of]
        return self.worth[order, here] + self.worth[order[place], self.block_of] - own - own[place]

    def gain(self, order: np.ndarray, place: int, others: np.ndarray) -> np.ndarray:
        """What it does add, positions chosen anew."""
        here, there = self.block_of[place], self.block_of[others]
        moved = self.energy[order[others]] - self.energy[order[place]]
        gain = self.value(self.sums[here] + moved) + self.value(self.sums[there] - moved) - self.values[here] - self.values[there]
        return np.where(there == here, 0, gain)


def _exchanged(layers: Sequence[_Blocked], count: int, effort: int) -> np.ndarray:
    """The order of ``count`` channels to which exchanges lead that keep more of ``layers``' energy."""
    order, apart = np.arange(count), np.any([layer.block_of[:, None] != layer.block_of for layer in layers], 0)
    least = EPSILON * sum(float(layer.values.sum()) for layer in layers)
    cost, idle = OVERHEAD + sum(2 * PARTNERS * layer.energy.shape[1] + layer.energy.size // 10 for layer in layers), 0
    for place in islice(cycle(range(count)), effort // cost):
        others = np.flatnonzero(apart[place])
        idle += 1
        if idle > count:
            break  # each place was tried since the last exchange
        if not len(others):
            continue  # a block as large as the layer
        promise = np.sum([layer.promise(order, place) for layer in layers], 0)[others]
        others = others[np.argpartition(-promise, min(PARTNERS, len(others)) - 1)[:PARTNERS]]
        gains = np.sum([layer.gain(order, place, others) for layer in layers], 0)
        if gains.max() > least:
            other, idle = others[gains.argmax()], 0
            order[[place, other]] = order[[other, place]]
            for layer in layers:
                layer.put(order, {layer.block_of[place], layer.block_of[other]})
    return order
