"""Schedules by hand, and ADMM on problems whose answer is known."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stages.config import SearchPruner
from stages.pruners import PRUNERS
from stages.pruners.admm import Admm
from stages.pruners.base import UPDATES, due, ramp_steps
from stages.pruners.gradual import Gradual, cubic_rate, scheme_at
from stages.schemes import DENSE, PATTERN_RATE, LayerScheme, Scheme, check_zeros, make_masks
from stages.schemes.masks import position_mask


def test_the_cubic_schedule_has_the_papers_values():
    # 5x is sparsity 0.8; Zhu and Gupta's equation 1 gives 0.8 (1 - (1 - t)^3)
    sparsity = [1 - 1 / cubic_rate(5.0, t) for t in (0, 0.25, 0.5, 0.75, 1)]
    assert sparsity == pytest.approx([0, 0.8 * 0.578125, 0.8 * 0.875, 0.8 * 0.984375, 0.8])


@given(st.floats(1, 10), st.floats(0, 1), st.floats(0, 1))
def test_the_rate_only_rises(rate, a, b):
    low, high = sorted((a, b))
    assert 1 <= cubic_rate(rate, low) <= cubic_rate(rate, high) * (1 + 1e-9) and cubic_rate(rate, high) <= rate * (1 + 1e-9)


def test_a_scheme_on_its_way_is_legal_and_ends_as_itself():
    scheme = Scheme({"a": LayerScheme("keep", "pattern", 5.0, 8), "b": LayerScheme("keep", "block-punched", 3.0, 4), "c": DENSE}, ({"d": "conv2d"},))
    begin = scheme_at(scheme, 0.0)
    assert begin["a"] == LayerScheme("keep", "pattern", PATTERN_RATE, 8) and begin["b"] == LayerScheme("keep", "block-punched", 1.0, 4) and begin["c"] == DENSE
    assert begin.coupled == scheme.coupled
    assert scheme_at(scheme, 1.0) == scheme


@settings(max_examples=50)
@given(st.integers(1, 3000), st.floats(0, 1))
def test_the_ramp_always_ends_within_the_training(total, share):
    ramp = ramp_steps(total, share)
    changes = [step for step in range(1, total + 1) if due(step, ramp)]
    assert 1 <= ramp <= total and changes[-1] == ramp and len(changes) <= 2 * UPDATES


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(5, 12, 3), nn.Conv2d(12, 8, 1))


def test_gradual_never_revives_a_weight_and_ends_on_the_target():
    module = network(0)
    scheme = Scheme({"0": LayerScheme("keep", "pattern", 6.0, 4), "1": LayerScheme("keep", "block-punched", 4.0, 3)})
    pruner = Gradual(module, scheme, SearchPruner(prune_share=0.5))
    assert pruner.masks == {}
    lost, counts = {}, []
    for step in range(1, 21):
        with torch.no_grad():  # an optimiser that moves everything a little
            for p in module.parameters():
                p.add_(torch.randn_like(p), alpha=0.01)
        pruner.after_step(step, 20)
        for name, mask in pruner.masks.items():
            module.state_dict()[name].masked_fill_(~mask, 0)
            assert not bool((mask & lost.get(name, ~mask)).any())
            lost[name] = ~mask
        counts.append(sum(int(mask.sum()) for mask in pruner.masks.values()))
        if step >= 10:
            check_zeros(module, scheme, pruner.masks)
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[9] and counts[9:] == [counts[9]] * 11


def minimise(module: nn.Module, loss, pruner, steps: int, lr: float) -> None:
    """Plain gradient descent as fit does it: step, hook, masks."""
    for step in range(1, steps + 1):
        module.zero_grad()
        loss(module).backward()
        with torch.no_grad():
            for p in module.parameters():
                p.sub_(lr * p.grad)
        pruner.after_step(step, steps)
        for name, mask in pruner.masks.items():
            module.state_dict()[name].masked_fill_(~mask, 0)


def test_admm_finds_the_projection_of_a_separable_quadratic():
    torch.manual_seed(0)
    module, target = nn.Sequential(nn.Linear(12, 8, bias=False)), torch.randn(8, 12)
    scheme = Scheme({"0": LayerScheme("keep", "block-based", 3.0, 4)})
    one_shot = make_masks(module, scheme)["0.weight"]
    wanted = position_mask(target, 3.0, 4)
    assert not torch.equal(one_shot, wanted)
    pruner = Admm(module, scheme, SearchPruner())
    minimise(module, lambda m: (m[0].weight - target).square().sum() / 2, pruner, 2000, 0.1)
    assert torch.equal(pruner.masks["0.weight"], wanted)
    assert torch.allclose(module[0].weight, target * wanted, atol=1e-4)


def least_squares() -> tuple[Tensor, Tensor, Tensor]:
    """Hessian and linear term of |X w - y|^2 / 2n with strongly correlated inputs, and the dense optimum."""
    generator = torch.Generator().manual_seed(3)
    common = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    x = common + 0.4 * torch.randn(200, 6, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -0.9, 0.8, 0.7, -0.6, 0.5], dtype=torch.float64) + 0.1 * torch.randn(200, generator=generator, dtype=torch.float64)
    hessian, linear = x.T @ x / 200, x.T @ y / 200
    return hessian, linear, torch.linalg.solve(hessian, linear)


def best_loss(hessian: Tensor, linear: Tensor, support: tuple[int, ...]) -> float:
    i = list(support)
    w = torch.linalg.solve(hessian[i][:, i], linear[i])
    return float(w @ hessian[i][:, i] @ w / 2 - linear[i] @ w)


def test_admm_picks_the_best_subset_where_magnitude_does_not():
    hessian, linear, dense = least_squares()
    losses = {s: best_loss(hessian, linear, s) for s in combinations(range(6), 3)}
    best = min(losses, key=lambda s: losses[s])
    largest = tuple(sorted(dense.abs().topk(3).indices.tolist()))
    assert losses[best] < losses[largest]
    module = nn.Sequential(nn.Linear(6, 1, bias=False)).double()
    module[0].weight.data.copy_(dense)
    scheme = Scheme({"0": LayerScheme("keep", "block-based", 2.0, 1)})
    assert tuple(make_masks(module, scheme)["0.weight"][0].nonzero().flatten().tolist()) == largest
    pruner = Admm(module, scheme, SearchPruner())

    def loss(m: nn.Module) -> Tensor:
        w = m[0].weight[0]
        return w @ hessian @ w / 2 - linear @ w

    minimise(module, loss, pruner, 2000, 0.1)
    found = tuple(pruner.masks["0.weight"][0].nonzero().flatten().tolist())
    assert found == best
    assert float(loss(module).detach()) == pytest.approx(losses[found], abs=1e-4)


def test_one_round_of_admm_by_hand():
    module = nn.Sequential(nn.Linear(2, 1, bias=False))
    module[0].weight.data.copy_(torch.tensor([[3.0, 1.0]]))
    pruner = Admm(module, Scheme({"0": LayerScheme("keep", "block-based", 2.0, 1)}), SearchPruner(admm_rho=1.0))
    assert pruner.z["scheme"]["0.weight"].tolist() == [[3.0, 0.0]] and pruner.u["scheme"]["0.weight"].tolist() == [[0.0, 0.0]]
    pruner.attract()  # halfway to z - u, for rho = 1
    assert module[0].weight.tolist() == [[3.0, 0.5]]
    pruner.update()
    assert pruner.z["scheme"]["0.weight"].tolist() == [[3.0, 0.0]] and pruner.u["scheme"]["0.weight"].tolist() == [[0.0, 0.5]]
    pruner.attract()
    assert module[0].weight.tolist() == [[3.0, 0.0]]
    pruner.start()
    assert pruner.z["scheme"]["0.weight"].tolist() == [[3.0, 0.0]] and pruner.u["scheme"]["0.weight"].tolist() == [[0.0, 0.0]]


def test_rho_takes_its_values_in_turn_and_the_masks_come_at_the_end():
    module = network(1)
    pruner = Admm(module, Scheme({"1": LayerScheme("keep", "block-punched", 2.0, 4)}), SearchPruner(prune_share=0.5, admm_stages=4, admm_rho=1e-4))
    seen = []
    for step in range(1, 81):
        seen.append(pruner.rho)
        pruner.after_step(step, 80)
        assert bool(pruner.masks) == (step >= 40)
    assert sorted(set(seen)) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert [seen.index(rho) for rho in sorted(set(seen))] == [0, 10, 20, 30]


def test_every_name_of_the_configuration_is_an_algorithm():
    from stages.config import fields

    assert set(PRUNERS) == set(fields("search_pruner")["algorithms"].metadata["choices"])
