"""What each algorithm goes by, against something independent: autograd, closed forms, sorting, brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from stages.config import SearchPruner
from stages.graph import couplings, trace
from stages.pruners.admm import constraint_sets
from stages.pruners.dais import Dais, budgeted, budgeted_slope
from stages.pruners.dynamic_pattern import DynamicPattern
from stages.pruners.geometric_median import GeometricMedian, distances
from stages.pruners.global_scale import GlobalScale, threshold
from stages.pruners.group_lasso import GroupLasso, shrink_factors
from stages.pruners.importance import Importance
from stages.pruners.norms import NormWatch
from stages.pruners.purify import purify_
from stages.pruners.taylor import Taylor
from stages.schemes import LayerScheme, Scheme, check_zeros, make_masks, prune_, uniform_scheme
from stages.schemes.masks import PATTERNS, mine_patterns
from stages.schemes.units import units_of

FAST = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    """A residual sum, batch norms, and a convolution in front of its norm in the list but not in the flow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.norm_b, self.norm_a = nn.BatchNorm2d(8), nn.BatchNorm2d(12)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.norm_b(self.b(torch.relu(self.norm_a(self.a(x))))))
        return self.head(x.mean((2, 3)))


def residual(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = Residual()
    for norm in (module.norm, module.norm_a, module.norm_b):
        nn.init.uniform_(norm.weight, 0.2, 2)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
    return module.eval()


# -- units -------------------------------------------------------------------------------------------------------------------------------------------


@FAST
@given(seeds, st.integers(1, 5), st.integers(1, 3))
def test_units_give_sums_back_and_agree_with_loops(seed, block, channels):
    tensors = {"a.weight": random(seed, 7, 5, 3, 3)}
    (units,) = units_of(tensors, Scheme({"a": LayerScheme("keep", "block-punched", 2.0, block, channels)}))
    sums = units.sums(tensors)
    w = tensors["a.weight"].double()
    wanted = [[float(w[g : g + block, c : c + channels, k // 3, k % 3].sum()) for c in range(0, 5, channels) for k in range(9)] for g in range(0, 7, block)]
    assert np.allclose(sums, wanted)
    assert torch.allclose(units.sums(units.shares(sums)), sums) and torch.allclose(units.vectors("a.weight", w).sum(-1), sums)


def test_given_scores_take_the_place_of_magnitude():
    module = residual()
    for kind, rate in (("block-punched", 3.0), ("pattern", 4.5), ("filter", 2.0)):
        scheme = uniform_scheme(trace(module, torch.zeros(1, 3, 8, 8)), kind, rate, 4)
        scores = {name: random(1, *p.shape).square() for name, p in module.named_parameters()}
        masks = make_masks(module, scheme, scores)
        check_zeros({name: tensor * masks[name] if name in masks else tensor for name, tensor in module.state_dict().items()}, scheme, masks)
        if kind != "filter":  # scores that are squares choose like weights that are their roots
            other = residual(5)
            other.load_state_dict({name: scores[name].sqrt() if name in scores else tensor for name, tensor in module.state_dict().items()})
            assert all(torch.equal(mask, masks[name]) for name, mask in make_masks(other, scheme).items())


# -- Taylor ------------------------------------------------------------------------------------------------------------------------------------------


def test_taylor_is_the_first_order_change_of_a_quadratic():
    module, target = nn.Sequential(nn.Linear(4, 2, bias=False)), random(1, 2, 4)
    pruner = Taylor(module, Scheme({"0": LayerScheme("keep", "block-based", 2.0, 1)}), SearchPruner())

    def loss(weight: Tensor) -> Tensor:
        return (weight - target).square().sum()

    loss(module[0].weight).backward()
    pruner.before_step()
    w = module[0].weight.detach()
    (gradient,) = torch.autograd.grad(loss(leaf := w.clone().requires_grad_()), leaf)
    assert torch.allclose(pruner.importance.values["0.weight"], (w * gradient).square())
    tiny, place = 1e-4, (1, 2)  # and the gradient is what the loss really does
    shrunk = w.double().clone()
    shrunk[place] *= 1 - tiny
    change = float(loss(w.double()) - loss(shrunk)) / tiny
    assert float(pruner.importance.values["0.weight"][place]) == pytest.approx(change**2, rel=1e-2)


def test_importance_averages_and_forgets():
    module = nn.Sequential(nn.Linear(2, 1, bias=False))
    importance = Importance(DynamicPattern(module, Scheme(), SearchPruner()), ["0.weight"])
    module[0].weight.data.fill_(1.0)
    for gradient in (1.0, 2.0):
        module[0].weight.grad = torch.full((1, 2), gradient)
        importance.observe()
    assert torch.allclose(importance.values["0.weight"], torch.full((1, 2), 0.9 * 1 + 0.1 * 4))
    importance.forget({"0.weight": torch.tensor([[True, False]])})
    assert importance.values["0.weight"][0, 1] == 0


# -- geometric median --------------------------------------------------------------------------------------------------------------------------------


@FAST
@given(seeds, st.integers(2, 9))
def test_distance_sums_agree_with_scipy_and_leave_the_dead_out(seed, units):
    vectors = random(seed, 2, units, 5)
    vectors[0, 0] = 0
    found = distances(vectors)
    assert np.allclose(found[1], cdist(vectors[1].double(), vectors[1].double()).sum(1))
    alive = vectors[0, 1:].double()
    assert found[0, 0] == 0 and np.allclose(found[0, 1:], cdist(alive, alive).sum(1))


def test_the_filter_in_the_middle_goes_first_however_large():
    module = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 1, 1))
    module[0].weight.data.copy_(torch.tensor([1.0, 5.0, 10.0]).view(3, 1, 1, 1))  # distance sums 13, 9, 14: the one of 5 is the median
    scheme = Scheme({"0": LayerScheme("keep", "filter", 1.5)}, couplings(trace(module, torch.zeros(1, 1, 4, 4))))
    pruner = GeometricMedian(module, scheme, SearchPruner())
    pruner.after_step(1, 1)
    assert pruner.masks["0.weight"].flatten().tolist() == [True, False, True] and not make_masks(module, scheme)["0.weight"][0].any()


# -- group lasso -------------------------------------------------------------------------------------------------------------------------------------


@FAST
@given(seeds, st.floats(0.01, 3))
def test_the_proximal_map_minimises_what_it_should(seed, strength):
    w = random(seed, 4, 6).double()
    norms = w.norm(dim=1)[None]
    point = w * shrink_factors(norms, torch.full_like(norms, strength)).T

    def objective(v: Tensor) -> Tensor:
        return (v - w).square().sum() / 2 + strength * v.norm(dim=1).sum()

    best = objective(point)
    assert all(objective(point + 1e-3 * random(seed + k, 4, 6)) >= best for k in range(20))


@pytest.mark.parametrize(("strength", "boundary"), [(1.0, 0.69), (4.0, 0.0)])
def test_small_units_vanish_over_a_ramp_those_on_the_boundary_under_a_strong_pull_and_large_ones_stay(strength, boundary):
    module = nn.Sequential(nn.Linear(4, 1, bias=False))
    module[0].weight.data.copy_(torch.tensor([[30.0, 1.0, 0.5, 0.1]]))
    pruner = GroupLasso(module, Scheme({"0": LayerScheme("keep", "block-based", 2.0, 1)}), SearchPruner(lasso_strength=strength, prune_share=1.0))
    for step in range(1, 801):
        pruner.after_step(step, 800)
    weight = module[0].weight[0].tolist()
    assert weight[1] == pytest.approx(boundary, abs=0.03) and weight[2:] == [0, 0] and weight[0] == pytest.approx(30, abs=0.1) and pruner.masks["0.weight"].tolist() == [[True, True, False, False]]


# -- dynamic patterns --------------------------------------------------------------------------------------------------------------------------------


@FAST
@given(seeds)
def test_the_chosen_patterns_hold_the_most_importance(seed):
    module = nn.Sequential(nn.Conv2d(5, 4, 3))
    pruner = DynamicPattern(module, Scheme({"0": LayerScheme("keep", "pattern", 2.25, 2)}), SearchPruner(prune_share=1.0))
    pruner.importance.values = {"0.weight": random(seed, 4, 5, 3, 3).square()}
    pruner.after_step(1, 1)
    blocks = random(seed, 4, 5, 3, 3).square().double().view(2, 2, 5, 9).sum(1)
    table = mine_patterns(blocks.view(-1, 9))
    everything = {tuple(sorted((4, *rest))) for rest in combinations((0, 1, 2, 3, 5, 6, 7, 8), 3)}
    assert len(table) <= PATTERNS and {tuple(p.nonzero().flatten().tolist()) for p in table} <= everything
    mask = pruner.masks["0.weight"].view(2, 2, 5, 9)
    for group in range(2):
        for kernel in range(5):
            best = max(float(blocks[group, kernel, p].sum()) for p in table)
            assert float(blocks[group, kernel, mask[group, 0, kernel]].sum()) == pytest.approx(best)


def test_losing_parts_shrink_and_chosen_ones_do_not():
    module = nn.Sequential(nn.Conv2d(4, 4, 3))
    before = module[0].weight.detach().clone()
    pruner = DynamicPattern(module, Scheme({"0": LayerScheme("keep", "pattern", 4.5, 2)}), SearchPruner(prune_share=1.0))
    pruner.importance.values = {"0.weight": before.square()}
    pruner.after_step(50, 100)
    after, chosen = module[0].weight.detach(), pruner.chosen["0.weight"]
    assert not pruner.masks and torch.equal(after[chosen], before[chosen]) and bool((after[~chosen].abs() < before[~chosen].abs()).all())


# -- DAIS --------------------------------------------------------------------------------------------------------------------------------------------


@FAST
@given(seeds, st.floats(0.05, 0.95), st.sampled_from([1.0, 0.3, 0.05]))
def test_gates_keep_to_their_budget_and_their_slope_is_autograds(seed, share, temperature):
    a = random(seed, 2, 9).double()
    gates = budgeted(a, temperature, share)
    assert torch.allclose(gates.mean(1), torch.full((2,), share, dtype=torch.float64), atol=1e-6)
    slope, step = random(seed + 1, 2, 9).double(), 1e-5
    numeric = torch.zeros_like(a)
    for i in range(9):
        moved = a.clone()
        moved[:, i] += step
        back = a.clone()
        back[:, i] -= step
        numeric[:, i] = ((budgeted(moved, temperature, share) - budgeted(back, temperature, share)) / (2 * step) * slope).sum(1)
    assert torch.allclose(budgeted_slope(gates, temperature, slope), numeric, atol=1e-3)


def test_indicators_end_binary_and_learn_what_matters():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 1, bias=False))
    module[0].weight.data.copy_(torch.tensor([[1.0, 1, 1, 1, 1.1, 1.1, 1.1, 1.1]]))  # magnitude would keep the last four
    pruner = Dais(module, Scheme({"0": LayerScheme("keep", "block-based", 2.0, 1)}), SearchPruner(prune_share=1.0, dais_lr=0.1))
    inputs = torch.randn(64, 8)
    wanted = inputs[:, :4].sum(1, keepdim=True)  # but only the first four are needed
    spread = []
    for step in range(1, 101):
        module.zero_grad()
        (module(inputs) - wanted).square().mean().backward()
        pruner.before_step()
        pruner.after_step(step, 100)
        if pruner.gates:
            spread.append(float((pruner.gates[0] * (1 - pruner.gates[0])).max()))
    assert spread[-1] < 1e-3 < max(spread) and pruner.masks["0.weight"].tolist() == [[True] * 4 + [False] * 4]


# -- global scale ------------------------------------------------------------------------------------------------------------------------------------


@FAST
@given(seeds, st.integers(0, 30), st.sampled_from([0.0, 0.25, 0.75]))
def test_bisection_finds_what_sorting_finds(seed, fit, rest):
    scores = random(seed, 30).abs().double()
    safe = random(seed + 1, 30) > 1
    costs = torch.ones(30, dtype=torch.float64)
    line = threshold(scores, costs, safe, float(safe.sum()) + fit + rest)  # exact in float64: rounding decides nothing
    free = sorted(scores[~safe].tolist(), reverse=True)
    assert sorted(scores[(scores > line) & ~safe].tolist(), reverse=True) == free[:fit]


def test_one_threshold_rises_through_all_layers():
    module = residual()
    scheme = uniform_scheme(trace(module, torch.zeros(1, 3, 8, 8)), "filter", 4.0)
    pruner = GlobalScale(module, scheme, SearchPruner())
    scales = {"a": module.norm_a.weight.detach().abs(), "stem": (module.norm.weight + module.norm_b.weight).detach().abs() / 2}
    for progress in (0.1, 0.2, 0.4):
        masks = pruner.masks_at(progress)
        keep = {path: masks[f"{path}.weight"].flatten(1).any(1) for path in scales}
        free = [path for path in scales if int(keep[path].sum()) > len(keep[path]) // 4]
        gone = max((float(scales[path][~keep[path]].max()) for path in scales if not keep[path].all()), default=0.0)
        assert free and all(float(scales[path][keep[path]].min()) >= gone for path in free)
    check_zeros({name: t * pruner.masks_at(1.0).get(name, True) for name, t in module.state_dict().items()}, scheme, pruner.masks_at(1.0))


def test_the_norm_behind_a_layer_is_the_one_that_reads_it():
    module = residual()
    watch = NormWatch(module)
    module(torch.zeros(1, 3, 8, 8))
    assert watch.pairs == {"stem": "norm", "a": "norm_a", "b": "norm_b"}
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


# -- ADMM's two sets ---------------------------------------------------------------------------------------------------------------------------------


@FAST
@given(seeds)
def test_projections_on_patterns_and_on_connectivity_are_the_nearest_points(seed):
    module = nn.Sequential(nn.Conv2d(4, 2, 3))
    weight = random(seed, 2, 4, 3, 3)
    sets = constraint_sets(module, Scheme({"0": LayerScheme("keep", "pattern", 4.5, 1)}))
    found = {key: masks({"0.weight": weight}) for key, masks in sets.items()}
    assert set(found) == {"scheme", "pattern", "connectivity"} and not found["scheme"]
    energy = weight.double().square().view(2, 4, 9)
    table = mine_patterns(energy.view(-1, 9))
    for f in range(2):
        kernels = found["connectivity"]["0.weight"][f].view(4, 9)
        best = max(combinations(range(4), 2), key=lambda pair, f=f: float(energy[f, list(pair)].sum()))
        assert tuple(kernels.all(1).nonzero().flatten().tolist()) == best and int(kernels.sum()) == 18
        for k in range(4):
            pattern = found["pattern"]["0.weight"][f, k].flatten()
            assert float(energy[f, k, pattern].sum()) == pytest.approx(max(float(energy[f, k, p].sum()) for p in table))


# -- purification ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["filter", "block-punched", "pattern"])
def test_purification_only_adds_zeros_and_changes_no_output(kind):
    module, x = residual(), torch.randn(4, 3, 8, 8)
    graph = trace(module, x[:1])
    scheme = uniform_scheme(graph, kind, 5.0, 12)  # one group per layer, so that whole input channels go
    masks = prune_(module, scheme)
    with torch.no_grad():
        outputs, before = module(x), {name: t.clone() for name, t in module.state_dict().items()}
        lost = purify_(module, trace(module, x[:1]))
        assert torch.equal(module(x), outputs)
    check_zeros(module, scheme, masks)
    after = module.state_dict()
    assert all(torch.equal(after[name][after[name] != 0], t[after[name] != 0]) for name, t in before.items())
    assert sum(lost.values()) == sum(int((t != 0).sum()) - int((after[name] != 0).sum()) for name, t in before.items())
    assert not purify_(module, graph), "once is enough"


def test_purification_follows_chains_and_spares_what_shows():
    module = residual()
    with torch.no_grad():
        module.b.weight[:, 3] = 0  # nobody reads channel 3 of a
        module.stem.weight[1] = 0  # half of a residual sum: the other half is alive
    lost = purify_(module, trace(module, torch.zeros(1, 3, 8, 8)))
    assert lost == {"a.weight": 72, "norm_a.weight": 1, "norm_a.bias": 1}
    with torch.no_grad():
        module.a.weight.zero_()
        module.norm_a.weight.zero_()
        module.norm_a.bias.zero_()
    lost = purify_(module, trace(module, torch.zeros(1, 3, 8, 8)))
    assert lost == {"b.weight": 8 * 11 * 9}
