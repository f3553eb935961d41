"""Which candidates to measure: all of them where they are few, else the genetic algorithm of the paper (NPAS, section 4.3), seeded by the cost model's ranking. Knows nothing of kernels.

A candidate is a frozen dataclass; its fields are the genes. What is legal is what stands in the list of candidates.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

C = TypeVar("C")

ENUMERATE = 48  # so many candidates are all measured
BATCH = 12  # candidates measured at a time: the population
PARENTS = 4  # best ones of a generation that have children
MUTATION = 0.3  # chance of each child to have a gene moved to a neighbouring value
_TRIES = 50  # to make a child that is legal and new


def explore(
    ranked: Sequence[C], measure: Callable[[Sequence[C]], dict[C, float]], known: dict[C, float], most: int = ENUMERATE, seed: int = 0
) -> Iterator[dict[C, float]]:
    """Measure batches of ``ranked`` (best expected first, all different) until all or ``most`` of them are known; yields all costs known after each batch.

    ``measure`` gives the cost of each candidate of a batch (infinite when it is wrong); ``known`` are costs from before. Equal arguments give equal batches.
    """
    costs = {c: known[c] for c in ranked if c in known}
    generator = random.Random(f"{seed} {len(ranked)}")
    if costs:
        yield dict(costs)
    while len(costs) < min(most, len(ranked)):
        size = min(BATCH, most - len(costs))
        waiting = [c for c in ranked if c not in costs]
        batch = waiting[:size] if len(ranked) <= most or len(costs) < BATCH else _children(costs, ranked, waiting, size, generator)
        costs |= measure(batch)
        yield dict(costs)


def _children(costs: dict[C, float], ranked: Sequence[C], waiting: Sequence[C], size: int, generator: random.Random) -> list[C]:
    """New candidates from the best ones measured: genes of two parents, some moved to a neighbouring value; the best expected ones fill up."""
    parents = sorted(costs, key=lambda c: costs[c])[:PARENTS]
    legal, values = set(waiting), _values(ranked)
    made: list[C] = []
    for _ in range(size * _TRIES):
        if len(made) == size:
            break
        one = generator.choice(parents)
        other = generator.choice([p for p in parents if type(p) is type(one)])
        child = _child(one, other, values[type(one)], generator)
        if child in legal and child not in made:
            made.append(child)
    return made + [c for c in waiting if c not in made][: size - len(made)]


def _values(ranked: Sequence[C]) -> dict[type, list[list[object]]]:
    """For each kind of candidate, the values of each gene in order."""
    found: dict[type, list[set[object]]] = {}
    for c in ranked:
        genes = _genes(c)
        for known, gene in zip(found.setdefault(type(c), [set() for _ in genes]), genes, strict=True):
            known.add(gene)
    return {kind: [sorted(v) for v in values] for kind, values in found.items()}  # type: ignore[type-var]


def _genes(candidate: object) -> list[object]:
    return [getattr(candidate, f.name) for f in dataclasses.fields(candidate)]  # type: ignore[arg-type]


def _child(one: C, other: C, values: list[list[object]], generator: random.Random) -> C:
    genes = [generator.choice(pair) for pair in zip(_genes(one), _genes(other), strict=True)]
    if one == other or generator.random() < MUTATION:
        index = generator.randrange(len(genes))
        place = values[index].index(genes[index]) + generator.choice((-1, 1))
        genes[index] = values[index][max(0, min(place, len(values[index]) - 1))]
    return type(one)(*genes)
