"""What each choice does to a network, one layer at a time, before any trial: the estimates from which the integer program starts (LANA, Molchanov et al. 2022, section 3). Imports errors, progress, schemes and values of search/.

Loss: one layer takes the choice, pruned in one shot or with its reconstructed filter type; nothing is trained. Latency: compiled networks in which every layer takes its first choice, then its
second ..., so that each tells one choice of all layers. Of each scheme a few rates and block sizes are measured, the others lie between (``representatives``, ``between``).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stages.errors import NpasError
from stages.progress import Progress, bar
from stages.schemes import LayerScheme
from stages.search.evaluator import FATAL, Evaluator
from stages.search.lines import describe
from stages.search.session import measuring_threads
from stages.search.space import Choices, Costs, Space
from stages.search.trials import Journal

Slot = Sequence[LayerScheme]


def estimate(space: Space, evaluator: Evaluator, journal: Journal, progress: Progress) -> Costs:
    """Costs of every choice of ``space``: slots of LayerSchemes, each with its mildest choice first.

    ``evaluator.damage`` and ``evaluator.layer_ms`` are asked side by side. Each figure is journalled, so a search that is continued repeats none. A candidate that can't be built or measured is named and left out; a choice of which nothing is known counts as the worst of its slot.
    """
    assert evaluator.damage and evaluator.layer_ms
    slots: list[Slot] = list(space.slots)  # type: ignore[arg-type]
    measured = [representatives(slot) for slot in slots]
    mildest = tuple(slot[0] for slot in slots)
    single = {(i, c): (*mildest[:i], c, *mildest[i + 1 :]) for i, found in enumerate(measured) for c in found}
    alone = list(dict.fromkeys(single.values()))
    joint = [tuple(found[k if k < len(found) else 0] for found in measured) for k in range(max(map(len, measured)))]
    with measuring_threads(evaluator) as threads, bar(progress, "estimating each layer's choices", len(alone)):
        timed = threads.submit(_journalled, "layers", joint, evaluator.layer_ms, journal, progress.say)
        losses = _journalled("loss", alone, evaluator.damage, journal, progress.say, progress.advance)
        times = timed.result()
    if not times or not losses:
        raise NpasError("No choice of any layer could be measured alone.", "The lines above say why for each.")
    loss_rows, ms_rows = [], []
    for i, slot in enumerate(slots):
        ms: dict[LayerScheme, list[float]] = defaultdict(list)
        for choices, parts in times.items():
            ms[choices[i]].append(parts[i])  # type: ignore[index]
        loss_rows.append(between(slot, {c: losses[single[i, c]] for c in measured[i] if single[i, c] in losses}, math.log))
        ms_rows.append(between(slot, {c: min(values) for c, values in ms.items()}, _work))
    return Costs(tuple(loss_rows), tuple(ms_rows), float(np.median([parts[-1] for parts in times.values()])))


def representatives(slot: Slot) -> list[LayerScheme]:
    """The choices to measure, in the slot's order: of every filter type and scheme the smallest and the largest block at the lowest, the middle and the highest rate."""
    wanted: set[LayerScheme] = set()
    for family in _families(slot).values():
        blocks = sorted({c.block for c in family})
        for block in {blocks[0], blocks[-1]}:
            fitting = sorted((c for c in family if c.block == block), key=lambda c: c.rate)
            middle = math.sqrt(fitting[0].rate * fitting[-1].rate)
            wanted |= {fitting[0], min(fitting, key=lambda c: abs(math.log(c.rate / middle))), fitting[-1]}
    return [c for c in slot if c in wanted]


def between(slot: Slot, known: Mapping[LayerScheme, float], scale: Callable[[float], float]) -> tuple[float, ...]:
    """A figure for every choice of ``slot`` from those of some: of its filter type and scheme, linear in ``scale`` of the rate, then in the logarithm of the block; the largest known of all where
    nothing of the kind is known, 0 where nothing is known at all."""
    worst = max(known.values(), default=0.0)
    families = {key: [c for c in family if c in known] for key, family in _families(slot).items()}
    return tuple(known[c] if c in known else _within(c, families[_family(c)], known, scale, worst) for c in slot)


def _within(choice: LayerScheme, family: Slot, known: Mapping[LayerScheme, float], scale: Callable[[float], float], worst: float) -> float:
    blocks, values = sorted({c.block for c in family}), []
    for block in blocks:
        at = sorted((scale(c.rate), known[c]) for c in family if c.block == block)
        values.append(float(np.interp(scale(choice.rate), [x for x, _ in at], [y for _, y in at])))
    return float(np.interp(math.log(max(1, choice.block)), [math.log(max(1, b)) for b in blocks], values)) if blocks else worst


def _work(rate: float) -> float:
    return -1 / rate  # what is left of the work; rising with the rate


def _family(choice: LayerScheme) -> tuple[Any, ...]:
    return choice.filter_type, choice.pruning, choice.channels


def _families(slot: Slot) -> dict[tuple[Any, ...], list[LayerScheme]]:
    found: dict[tuple[Any, ...], list[LayerScheme]] = defaultdict(list)
    for choice in slot:
        found[_family(choice)].append(choice)
    return found


def _journalled(
    kind: str, candidates: Sequence[Choices], measure: Callable[[Choices], Any], journal: Journal, say: Callable[[str], None], advance: Callable[[], None] = lambda: None
) -> dict[Choices, Any]:  # fmt: skip
    """``measure`` of each candidate, unless the journal has it."""
    found = {journal.space.decode(r["at"]): r["value"] for r in tuple(journal.records) if r["kind"] == kind}
    for choices in candidates:
        if choices not in found:
            try:
                value = measure(choices)
                if not np.isfinite(value).all():
                    raise ValueError(f"the figure is {value}")
                journal.append(kind, at=journal.space.encode(choices), value=value)
                found[choices] = value
            except FATAL:
                raise
            except Exception as error:
                say(f"left out: {describe(error)}")
        advance()
    return found
