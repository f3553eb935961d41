"""Masks against naive loops, hand-checked cases and properties that hold for any shape."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stages.errors import UsageError
from stages.schemes import DENSE, PATTERN_RATE, LayerScheme, Scheme, apply_masks, check_zeros, kept_count, make_masks, prune_
from stages.schemes.masks import CANDIDATES, PATTERNS, mine_patterns, pattern_mask, position_mask

FAST = settings(max_examples=40, deadline=None)


def weight_of(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


conv_shapes = st.tuples(st.integers(1, 21), st.integers(1, 9), st.sampled_from([1, 2, 3]), st.sampled_from([1, 3, 5]))
shapes = st.one_of(conv_shapes, st.tuples(st.integers(1, 21), st.integers(1, 40)))
rates = st.one_of(st.floats(1, 10), st.sampled_from([1.0, 2.0, 2.5, 3.0, 5.0, 7.0, 10.0]))
blocks = st.integers(1, 24)
seeds = st.integers(0, 10_000)


def naive_units(weight: Tensor, rate: float, block: int, channels: int) -> Tensor:
    """Group by group, unit (block of channels, kernel position) by unit."""
    values = weight.double().reshape(*weight.shape[:2], -1)
    mask = torch.zeros_like(values, dtype=torch.bool)
    for start in range(0, len(values), block):
        members = slice(start, start + block)
        units = [(slice(c, c + channels), k) for c in range(0, values.shape[1], channels) for k in range(values.shape[2])]
        score = [float(values[members, c, k].square().sum()) for c, k in units]
        for u in sorted(range(len(units)), key=lambda u, score=score: (-score[u], u))[: max(1, round(len(units) / rate))]:
            mask[members, units[u][0], units[u][1]] = True
    return mask.view(weight.shape)


def naive_positions(weight: Tensor, rate: float, block: int) -> Tensor:
    """Group by group, position by position, in Python numbers."""
    flat = weight.flatten(1).double()
    mask = torch.zeros_like(flat, dtype=torch.bool)
    for start in range(0, flat.shape[0], block):
        members = range(start, min(start + block, flat.shape[0]))
        score = [sum(float(flat[f, p]) ** 2 for f in members) ** 0.5 for p in range(flat.shape[1])]
        kept = sorted(range(len(score)), key=lambda p, score=score: (-score[p], p))[: max(1, round(len(score) / rate))]
        for f in members:
            mask[f, kept] = True
    return mask.view(weight.shape)


@FAST
@given(shapes, rates, blocks, seeds)
def test_positions_agree_with_a_naive_loop(shape, rate, block, seed):
    weight = weight_of(shape, seed)
    assert torch.equal(position_mask(weight, rate, block), naive_positions(weight, rate, block))


@FAST
@given(shapes, rates, blocks, st.integers(1, 9), seeds)
def test_units_of_several_channels_agree_with_a_naive_loop(shape, rate, block, channels, seed):
    weight = weight_of(shape, seed)
    mask = position_mask(weight, rate, block, channels)
    assert torch.equal(mask, naive_units(weight, rate, block, channels))
    assert torch.equal(position_mask(weight * mask, rate, block, channels), mask)
    check_zeros({"a.weight": weight * mask}, Scheme({"a": LayerScheme("keep", "block-punched", rate, block, channels)}))


@FAST
@given(shapes, rates, blocks, seeds)
def test_every_group_keeps_the_same_count_and_shares_its_positions(shape, rate, block, seed):
    mask = position_mask(weight_of(shape, seed), rate, block).flatten(1)
    for group in mask.split(block):
        assert int(group[0].sum()) == kept_count(mask.shape[1], rate)
        assert bool((group == group[0]).all())


@FAST
@given(shapes, rates, blocks, seeds)
def test_masking_twice_changes_nothing(shape, rate, block, seed):
    weight = weight_of(shape, seed)
    mask = position_mask(weight, rate, block)
    assert torch.equal(position_mask(weight * mask, rate, block), mask)


@FAST
@given(shapes, st.tuples(rates, rates), blocks, seeds)
def test_a_higher_rate_keeps_a_subset(shape, pair, block, seed):
    weight = weight_of(shape, seed)
    low, high = (position_mask(weight, rate, block) for rate in sorted(pair))
    assert not bool((high & ~low).any())


@FAST
@given(st.integers(2, 24), st.integers(1, 9), rates, seeds)
def test_finer_groups_keep_at_least_as_much_energy(filters, inputs, rate, seed):
    weight = weight_of((filters, inputs, 3, 3), seed)
    energy = [float((weight * position_mask(weight, rate, block)).square().sum()) for block in (1, 2, 4, 8)]
    assert all(fine >= coarse - 1e-4 for fine, coarse in zip(energy, energy[1:], strict=False))


def test_a_case_by_hand():
    weight = torch.tensor([[1.0, 0, 3, 0], [0, 2, 0, 2], [9, 0, 0, 1]]).view(3, 4, 1, 1)
    # filters 0 and 1 share: norms 1, 2, 3, 2 -> positions 2 and the first of the equal 1 and 3; filter 2 alone: 9 and 1
    wanted = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]], dtype=torch.bool)
    assert torch.equal(position_mask(weight, 2.0, 2).flatten(1), wanted)


def test_counts_round_half_to_even_and_never_reach_zero():
    assert [kept_count(n, rate) for n, rate in [(9, 2.0), (5, 2.0), (7, 2.0), (1, 10.0), (27, 10.0), (4, 1.0)]] == [4, 2, 4, 1, 3, 4]


def naive_pattern(weight: Tensor, rate: float, block: int) -> Tensor:
    """Best of 56 per kernel of each group; the 8 most voted patterns; best kernels per group."""
    patterns = [tuple(sorted((4, *rest))) for rest in combinations([p for p in range(9) if p != 4], 3)]
    groups = [range(s, min(s + block, weight.shape[0])) for s in range(0, weight.shape[0], block)]
    inputs = weight.shape[1]
    energy = [[[sum(float(weight[f, i].flatten()[p]) ** 2 for f in g) for p in range(9)] for i in range(inputs)] for g in groups]
    best = [max(patterns, key=lambda pattern, e=e: sum(e[p] for p in pattern)) for rows in energy for e in rows]
    chosen = sorted(set(patterns), key=lambda pattern: (-best.count(pattern), patterns.index(pattern)))[:8]
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for g, rows in zip(groups, energy, strict=True):
        picks = [max(chosen, key=lambda pattern, e=e: sum(e[p] for p in pattern)) for e in rows]
        scores = [sum(e[p] for p in pick) for e, pick in zip(rows, picks, strict=True)]
        kernels = sorted(range(inputs), key=lambda i, scores=scores: (-scores[i], i))[: max(1, round(inputs * 2.25 / rate))]
        for f in g:
            for i in kernels:
                mask[f, i].view(9)[list(picks[i])] = True
    return mask


pattern_rates = st.floats(PATTERN_RATE, 10)


@FAST
@given(st.integers(1, 17), st.integers(1, 9), pattern_rates, blocks, seeds)
def test_patterns_agree_with_a_naive_loop(filters, inputs, rate, block, seed):
    weight = weight_of((filters, inputs, 3, 3), seed)
    assert torch.equal(pattern_mask(weight, rate, block), naive_pattern(weight, rate, block))


@FAST
@given(st.integers(1, 40), st.integers(1, 12), pattern_rates, blocks, seeds)
def test_pattern_masks_have_their_structure_and_are_stable(filters, inputs, rate, block, seed):
    weight = weight_of((filters, inputs, 3, 3), seed)
    mask = pattern_mask(weight, rate, block)
    kernels = mask.view(-1, 9)
    kept = kernels[kernels.any(1)]
    assert bool(kept[:, 4].all()) and bool((kept.sum(1) == 4).all()) and len(kept.unique(dim=0)) <= PATTERNS
    for group in mask.flatten(2).split(block):
        assert int(group[0].any(-1).sum()) == kept_count(inputs, rate / PATTERN_RATE)
        assert bool((group == group[0]).all())
    assert torch.equal(pattern_mask(weight * mask, rate, block), mask)


def test_the_candidates_are_56_patterns_of_four_with_the_centre():
    assert CANDIDATES.shape == (56, 9) and len(CANDIDATES.unique(dim=0)) == 56
    assert bool((CANDIDATES.sum(1) == 4).all()) and bool(CANDIDATES[:, 4].all())


def test_mining_takes_the_most_frequent_and_ignores_empty_kernels():
    cross, corner = torch.tensor([0, 1, 0, 1, 1, 1, 0, 0, 0.0]), torch.tensor([1, 1, 0, 1, 1, 0, 0, 0, 0.0])
    mined = mine_patterns(torch.stack([corner, cross, cross, *[torch.zeros(9)] * 50]).double())
    assert torch.equal(mined[0], cross.bool()) and torch.equal(mined[1], corner.bool())


KINDS = [
    LayerScheme("keep", "block-punched", 3.0, 8),
    LayerScheme("keep", "pattern", 5.0, 4),
    LayerScheme("keep", "block-punched", 10.0, 3),
    LayerScheme("keep", "pattern", 2.25, 16),
    LayerScheme("keep", "block-punched", 3.0, 8, 4),
]


@pytest.mark.parametrize("layer", KINDS, ids=lambda x: x.label)
def test_prune_zeros_exactly_what_the_mask_excludes(layer):
    module = nn.Sequential(nn.Conv2d(6, 20, 3), nn.ReLU(), nn.Conv2d(20, 7, 3))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    scheme = Scheme({"0": layer, "2": DENSE})
    masks = prune_(module, scheme)
    assert set(masks) == {"0.weight"}
    assert torch.equal(module[0].weight, before["0.weight"] * masks["0.weight"])
    assert torch.equal(module[2].weight, before["2.weight"]) and torch.equal(module[0].bias, before["0.bias"])
    check_zeros(module, scheme, masks)
    check_zeros(module, scheme)


def test_masks_are_deterministic_and_do_not_touch_the_module():
    module = nn.Conv2d(5, 12, 3)
    before = module.weight.detach().clone()
    scheme = Scheme({"": LayerScheme("keep", "pattern", 4.0, 5)})
    wrapped = nn.Sequential(module)
    named = Scheme({"0": scheme[""]})
    first, second = make_masks(wrapped, named), make_masks(wrapped, named)
    assert all(torch.equal(first[k], second[k]) for k in first) and torch.equal(module.weight, before)
    wrapped.to(memory_format=torch.channels_last)
    assert torch.equal(make_masks(wrapped, named)["0.weight"], first["0.weight"])


def test_masked_weights_become_zero_even_when_they_were_not_finite():
    module = nn.Sequential(nn.Linear(2, 1))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[float("nan"), -5.0]]))
    apply_masks(module, {"0.weight": torch.tensor([[False, False]])})
    assert module[0].weight.tolist() == [[0.0, 0.0]] and not bool(torch.signbit(module[0].weight).any())


BAD = [
    ({"1": LayerScheme("keep", "pattern", 3.0, 8)}, "'1'"),  # 1x1
    ({"0": LayerScheme("keep", "pattern", 2.0, 8)}, "'0'"),  # below 2.25
    ({"0": LayerScheme("keep", "block-based", 2.0, 8)}, "'0'"),  # a convolution
    ({"0": LayerScheme("keep", "block-punched", 2.0, 0)}, "'0'"),  # no block
    ({"0": LayerScheme("keep", "filter", 2.0)}, "'0'"),  # of no class
    ({"0": LayerScheme("keep", "block-punched", 2.0, 8, 0)}, "'0'"),  # no channels
    ({"0": LayerScheme("keep", "pattern", 3.0, 8, 4)}, "'0'"),  # patterns have no blocks of channels
    ({"2": LayerScheme("keep", "block-punched", 2.0, 8)}, "'2'"),  # depthwise
    ({"3": LayerScheme("keep", "block-punched", 2.0, 8)}, "'3'"),  # batch norm
    ({"stem": LayerScheme("keep", "block-punched", 2.0, 8)}, "'stem'"),  # unknown
    ({"0": LayerScheme("keep", "magic", 2.0, 8)}, "magic"),
    ({"0": LayerScheme("keep", "block-punched", float("nan"), 8)}, "'0'"),
]  # fmt: skip


@pytest.mark.parametrize("layers, named", BAD)
def test_an_impossible_scheme_is_an_error_that_names_the_layer(layers, named):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4))
    with pytest.raises(UsageError, match=named):
        make_masks(module, Scheme(layers))
