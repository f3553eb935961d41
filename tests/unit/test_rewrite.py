"""Replacing exponential activations: found in the trace however they are written, equal to a hand-written hard network, and still trainable."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.errors import UsageError
from stages.graph.rewrite import Replacement, apply_replacements, exponentials_left, find_replacements
from stages.graph.tracing import trace
from stages.tasks.vision import torchvision
from stages.tasks.zoo import npas_tiny

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def replaced(module: nn.Module, x: Tensor = X) -> nn.Module:
    """A copy without exponentials, through JSON as the stage does it."""
    listed = [r.to_json() for r in find_replacements(trace(module, x))]
    return apply_replacements(copy.deepcopy(module), [Replacement.from_json(r) for r in listed])


def kinds(module: nn.Module, x: Tensor = X) -> list[tuple[str, str, str]]:
    return [(r.module, r.before, r.after) for r in find_replacements(trace(module, x))]


class Written(nn.Module):
    """One activation, written as ``function`` says."""

    def __init__(self, function: Any):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = nn.Conv2d(4, 5, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.function(self.conv(x)))
        return y


def hard_swish(x: Tensor) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6


def hard_sigmoid(x: Tensor) -> Tensor:
    return (x + 3).clamp(0, 6) / 6


SPELLINGS = {
    "F.silu": (F.silu, "silu", hard_swish),
    "F.silu in place": (lambda x: F.silu(x, inplace=True), "silu", hard_swish),
    "x * torch.sigmoid(x)": (lambda x: x * torch.sigmoid(x), "swish", hard_swish),
    "x.sigmoid() * x": (lambda x: x.sigmoid() * x, "swish", hard_swish),
    "x.mul(F.sigmoid(x))": (lambda x: x.mul(F.sigmoid(x)), "swish", hard_swish),
    "torch.mul": (lambda x: torch.mul(torch.sigmoid(x), x), "swish", hard_swish),
    "x.mul_(x.sigmoid())": (lambda x: x.mul_(x.sigmoid()), "swish", hard_swish),
    "twice x * sigmoid(x)": (lambda x: 2 * x * torch.sigmoid(x), "sigmoid", lambda x: 2 * x * hard_sigmoid(x)),
    "x * sigmoid(1.7 x)": (lambda x: x * torch.sigmoid(1.7 * x), "sigmoid", lambda x: x * hard_sigmoid(1.7 * x)),
    "torch.sigmoid": (torch.sigmoid, "sigmoid", hard_sigmoid),
    "x.sigmoid_()": (lambda x: x.sigmoid_(), "sigmoid", hard_sigmoid),
    "F.mish": (F.mish, "mish", hard_swish),
    "F.gelu": (F.gelu, "gelu", hard_swish),
    "torch.tanh": (torch.tanh, "tanh", lambda x: x.clamp(-1, 1)),
    "x.tanh()": (lambda x: x.tanh(), "tanh", lambda x: x.clamp(-1, 1)),
    "F.softplus": (F.softplus, "softplus", torch.relu),
    "F.elu": (F.elu, "elu", lambda x: torch.where(x > 0, x, 0.1 * x)),
    "nn.SiLU": (nn.SiLU(), "silu", hard_swish),
    "nn.Sigmoid": (nn.Sigmoid(), "sigmoid", hard_sigmoid),
    "nn.Mish in place": (nn.Mish(inplace=True), "mish", hard_swish),
    "nn.GELU": (nn.GELU(approximate="tanh"), "gelu", hard_swish),
    "nn.Tanh": (nn.Tanh(), "tanh", lambda x: x.clamp(-1, 1)),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_becomes_the_hand_written_hard_version(spelling):
    function, before, hard = SPELLINGS[spelling]
    module = Written(function).eval()
    assert [k[1] for k in kinds(module)] == [before]
    found = replaced(module)
    with torch.no_grad():
        expected = module.last(hard(module.conv(X)))
        assert torch.allclose(found(X), expected, atol=1e-6)
        assert torch.allclose(found.train()(X), expected, atol=1e-6)  # the same forward in both modes
    graph = trace(found, X)
    assert not find_replacements(graph) and not exponentials_left(graph)
    assert list(found.state_dict()) == list(module.state_dict()) and isinstance(found, Written)


class Swish(torch.autograd.Function):
    """The memory-saving swish of several EfficientNet packages."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * s * (1 + x * (1 - s))


class MemorySwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Swish.apply(x)


class OwnSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


@pytest.mark.parametrize("make", [MemorySwish, OwnSwish])
def test_a_user_s_swish_module_is_exchanged(make):
    module = Written(make()).eval()
    found = replaced(module)
    assert type(found.function) is nn.Hardswish
    assert torch.allclose(found(X), module.last(hard_swish(module.conv(X))), atol=1e-6)


class Gate(nn.Module):
    """Squeeze and excitation, all functional, with dropout and a training branch."""

    def __init__(self, soft: bool):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.bias = nn.Parameter(torch.full((1, 8, 1, 1), 0.1))
        self.unused = nn.Parameter(torch.ones(2))
        self.soft = soft

    def forward(self, x: Tensor) -> Tensor:
        act, gate = (F.silu, torch.sigmoid) if self.soft else (hard_swish, hard_sigmoid)
        y = gate(self.expand(act(self.reduce(F.adaptive_avg_pool2d(x, 1)))) + self.bias)
        if self.training:
            x = x * 2
        return F.dropout(x * y, 0.5, training=self.training)


class FunctionalNet(nn.Module):
    """A functional SE net with one shared activation object; ``soft=False`` is its hand-written hard version with the same state_dict."""

    def __init__(self, soft: bool):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.act = nn.SiLU() if soft else nn.Hardswish()
        self.gate = Gate(soft)
        self.conv = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 4)
        self.soft = soft

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = self.act(self.conv(self.gate(x)))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


def test_functional_gates_against_the_hand_written_network():
    soft, hard = FunctionalNet(True), FunctionalNet(False)
    hard.load_state_dict(soft.state_dict())
    assert sorted(kinds(soft.eval())) == [("act", "silu", "hardswish")] * 2 + [("gate", "sigmoid", "hardsigmoid"), ("gate", "silu", "hardswish")]
    found = replaced(soft)
    assert list(found.state_dict()) == list(soft.state_dict())  # also the parameter that forward doesn't use
    found.load_state_dict(soft.state_dict())
    assert torch.allclose(found(X), hard.eval()(X), atol=1e-6) and not torch.allclose(found(X), soft(X), atol=1e-4)
    found.train(), hard.train()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        a = found(X)
        torch.manual_seed(1)
        b = hard(X)
    assert torch.allclose(a, b, atol=1e-5) and not torch.allclose(found(X), found(X))  # dropout and the branch on self.training survive
    a.sum().backward(), b.sum().backward()
    for (name, p), q in zip(found.named_parameters(), hard.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.allclose(p.grad, q.grad, atol=1e-4), name


def test_the_edited_network_copies_and_replays():
    soft = FunctionalNet(True).eval()
    found = replaced(soft)
    copied = copy.deepcopy(found)
    with torch.no_grad():
        copied.gate.bias.add_(1)
    assert not torch.allclose(copied(X), found(X)) and torch.allclose(replaced(soft)(X), found(X))
    assert not find_replacements(trace(found, X))


@pytest.mark.parametrize(("name", "size"), [("efficientnet_b0", 64), ("mobilenet_v3_small", 64), ("swin_t", 64), ("resnet18", 64)])
def test_torchvision(name, size):
    module = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    found = replaced(module, x)
    graph = trace(found, x)
    assert not find_replacements(graph) and list(found.state_dict()) == list(module.state_dict())
    assert {layer.op for layer in exponentials_left(graph)} == ({"softmax"} if name == "swin_t" else set())
    hand = copy.deepcopy(module)
    for parent in list(hand.modules()):
        for key, child in parent.named_children():
            hard = {nn.SiLU: nn.Hardswish, nn.Sigmoid: nn.Hardsigmoid, nn.GELU: nn.Hardswish}.get(type(child))
            if hard:
                setattr(parent, key, hard())
    with torch.no_grad():
        scale = float(hand(x).abs().max())  # untrained networks have tiny outputs
        assert torch.allclose(found(x), hand(x), rtol=0, atol=1e-4 * scale)
        assert torch.allclose(found(x), module(x), rtol=0, atol=1e-3 * scale) == (name in ("mobilenet_v3_small", "resnet18"))


def test_the_zoo_loses_every_exponential():
    module, x = npas_tiny().eval(), torch.randn(1, 3, 32, 32)
    found = replaced(module, x)
    assert (
        len(kinds(module, x))
        == sum(isinstance(m, nn.SiLU | nn.Sigmoid) for m in module.modules())
        == sum(isinstance(m, nn.Hardswish | nn.Hardsigmoid) for m in found.modules())
    )


def test_what_makes_the_output_is_left():
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.b(torch.sigmoid(self.a(x)))).reshape(-1, 3, 1)

    module, x = Detector().eval(), torch.randn(2, 6)
    found = replaced(module, x)
    with torch.no_grad():
        assert torch.allclose(found(x), torch.sigmoid(module.b(hard_sigmoid(module.a(x)))).reshape(-1, 3, 1))
    assert [layer.op for layer in exponentials_left(trace(found, x))] == ["sigmoid"]


def test_softmax_is_left_and_reported():
    module = nn.Sequential(nn.Flatten(), nn.Linear(432, 4), nn.Softmax(1)).eval()
    graph = trace(module, X)
    assert not find_replacements(graph) and [layer.op for layer in exponentials_left(graph)] == ["softmax"]


def test_an_explicit_exponential_is_reported():
    module = Written(lambda x: x / (1 + torch.exp(-x))).eval()
    assert [layer.target for layer in exponentials_left(trace(module, X))] == ["aten.exp.default"]


def test_a_module_used_twice_and_an_object_shared_by_two_names():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Written(F.silu)
            self.block.last = nn.Conv2d(4, 3, 3, padding=2)
            act = nn.SiLU()
            self.one, self.two = act, act

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.block(self.one(self.block(x)))).mean((2, 3))

    module = Shared().eval()
    found = replaced(module)
    assert found.one is found.two and type(found.one) is nn.Hardswish

    def block(x: Tensor) -> Tensor:
        return module.block.last(hard_swish(module.block.conv(x)))

    assert torch.allclose(found(X), hard_swish(block(hard_swish(block(X)))).mean((2, 3)), atol=1e-6)


def test_a_network_that_is_one_activation():
    assert not find_replacements(trace(nn.SiLU(), X))  # it makes the output


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.conv(x))
        for _ in range(x.shape[1] // 3):  # torch.fx can't follow a loop over a symbolic size
            y = self.last(y)
        return y


def test_a_module_that_torch_fx_cannot_follow_is_named():
    module = nn.Sequential(nn.Identity(), Branching()).eval()
    with pytest.raises(UsageError, match=r"Module '1' \(Branching\) computes silu in a way that can't be edited") as caught:
        replaced(module)
    assert "nn.SiLU" in caught.value.hint


def test_a_missing_module_is_named():
    with pytest.raises(UsageError, match="no module 'features.9'"):
        apply_replacements(nn.Sequential(), [Replacement("features.9:silu", "features.9", "silu", "hardswish")])


def test_calls_that_are_not_there_are_an_error():
    with pytest.raises(UsageError, match="calls of tanh in module ''"):
        apply_replacements(Written(F.silu), [Replacement(":tanh", "", "tanh", "hardtanh")])
