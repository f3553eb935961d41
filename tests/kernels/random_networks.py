"""Random small networks, drawn block by block: whatever convolutional classifiers are made of, in any order and of any shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Shape = tuple[int, int, int, int]
Draw = Callable[[st.SearchStrategy], object]

ACTIVATIONS = (
    nn.Identity, nn.ReLU, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Hardsigmoid, nn.LeakyReLU, nn.Tanh, nn.Mish, nn.ELU, nn.Softplus,
)  # fmt: skip


class Residual(nn.Module):
    """x + inner(x), or another operation of the two."""

    def __init__(self, inner: nn.Module, op: str, after: nn.Module):
        super().__init__()
        self.inner, self.op, self.after = inner, op, after

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.after({"add": x + y, "sub": x - y, "rsub": y - x, "mul": x * y}[self.op])


class Concat(nn.Module):
    """Branches side by side; a branch may be the input itself."""

    def __init__(self, *branches: nn.Module, dim: int = 1):
        super().__init__()
        self.branches, self.dim = nn.ModuleList(branches), dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], self.dim)


class DenseBlock(nn.Module):
    """Every layer reads all that was before (DenseNet)."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return torch.cat(found, 1)


class Split(nn.Module):
    """Some channels pass, the others go through ``inner``; then all are shuffled (ShuffleNet)."""

    def __init__(self, inner: nn.Module, first: int, groups: int, swap: bool):
        super().__init__()
        self.inner, self.first, self.groups, self.swap = inner, first, groups, swap

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split([self.first, x.shape[1] - self.first], 1)
        y = torch.cat([self.inner(b), a] if self.swap else [a, self.inner(b)], 1)
        n, c, h, w = y.shape
        if c % self.groups:
            return y
        return y.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Squeeze(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels: int, inner: int, act: nn.Module, gate: nn.Module, highest: bool):
        super().__init__()
        self.pool: nn.Module = nn.AdaptiveMaxPool2d(1) if highest else nn.AdaptiveAvgPool2d(1)
        self.down, self.up, self.act, self.gate = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1), act, gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.act(self.down(self.pool(x)))))


class Mlp(nn.Module):
    """Layer norm, two linear layers over the channels, layer scale, residual sum (ConvNeXt)."""

    def __init__(self, channels: int, inner: int, norm: bool):
        super().__init__()
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()
        self.up, self.down, self.gamma = nn.Linear(channels, inner), nn.Linear(inner, channels), nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.gelu(self.up(self.norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return x + self.gamma * y


class Lambda(nn.Module):
    """A function of one tensor."""

    def __init__(self, text: str, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.text, self.function = text, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.text


class Outputs(nn.Module):
    """The body's result behind each head."""

    def __init__(self, body: nn.Module, *heads: nn.Module):
        super().__init__()
        self.body, self.heads = body, nn.ModuleList(heads)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.body(x)
        return tuple(head(x) for head in self.heads)


class Drawer:
    """Draws blocks for an input of a shape; ``shape`` is that of the last block's result."""

    def __init__(self, draw: Draw, shape: Shape):
        self.draw, self.shape = draw, shape

    def number(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))  # type: ignore[call-overload]

    def one(self, *choices: object) -> object:
        return self.draw(st.sampled_from(choices))

    def activation(self) -> nn.Module:
        return self.one(*ACTIVATIONS)()  # type: ignore[operator, no-any-return]

    def channels(self) -> int:
        """Round numbers, odd ones, and one."""
        return int(self.one(self.number(1, 40), 8, 16, 24, 32, 48))  # type: ignore[call-overload]

    def body(self, blocks: int) -> nn.Module:
        layers = []
        for _ in range(blocks):
            layers.append(self.block())
            with torch.no_grad():
                self.shape = tuple(layers[-1].eval()(torch.zeros(self.shape)).shape)  # type: ignore[assignment]
        return nn.Sequential(*layers)

    def block(self) -> nn.Module:
        kinds = ("conv", "conv", "conv", "depthwise", "residual", "concat", "dense", "split", "squeeze", "mlp", "pool", "move", "norm", "twice")
        return getattr(self, f"_{self.one(*kinds)}")()  # type: ignore[no-any-return]

    def _normed(self, conv: nn.Conv2d) -> nn.Module:
        """A convolution, perhaps with batch norm, perhaps with an activation, perhaps the other way round."""
        order = self.one("plain", "conv bn act", "conv bn act", "conv act", "bn act conv")
        norm = nn.BatchNorm2d(conv.in_channels if order == "bn act conv" else conv.out_channels)
        parts = {"plain": [conv], "conv bn act": [conv, norm, self.activation()], "conv act": [conv, self.activation()]}
        return nn.Sequential(*parts.get(str(order), [norm, self.activation(), conv]))

    def _conv(self) -> nn.Module:
        _, c, h, w = self.shape
        groups = int(self.one(1, 1, 1, *(g for g in range(2, c + 1) if c % g == 0)))  # type: ignore[call-overload]
        outer = self.channels() if groups == 1 else groups * self.number(1, max(1, 32 // groups))
        kernel = self.one((1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (1, 3), (3, 1), (2, 2), (1, 7))
        dilation, stride = self.number(1, 2), self.one(1, 1, 1, 2, (2, 1), 3)
        padding = tuple(self.number(0, dilation * (k // 2)) for k in kernel)  # type: ignore[attr-defined]
        padding = tuple(max(p, (dilation * (k - 1) + 1 - size + 1) // 2) for p, k, size in zip(padding, kernel, (h, w), strict=True))  # type: ignore[call-overload]
        return self._normed(nn.Conv2d(c, outer, kernel, stride, padding, dilation, groups, bool(self.one(True, False))))  # type: ignore[arg-type]

    def _depthwise(self) -> nn.Module:
        c, kernel, dilation = self.shape[1], self.number(2, 7), self.number(1, 2)
        padding = max(dilation * (kernel - 1) // 2, (dilation * (kernel - 1) + 2 - min(self.shape[2:])) // 2)
        return self._normed(nn.Conv2d(c, c * int(self.one(1, 1, 1, 2, 3)), kernel, self.number(1, 2), padding, dilation, c))  # type: ignore[call-overload]

    def _same(self, inner: int, outer: int) -> nn.Module:
        """A convolution that keeps height and width."""
        kernel = int(self.one(1, 3, 3, 5))  # type: ignore[call-overload]
        return self._normed(nn.Conv2d(inner, outer, kernel, padding=kernel // 2))

    def _residual(self) -> nn.Module:
        c = self.shape[1]
        inner = self.channels()
        return Residual(nn.Sequential(self._same(c, inner), self._same(inner, c)), str(self.one("add", "add", "sub", "rsub", "mul")), self.activation())

    def _branch(self) -> nn.Module:
        kind = self.one("conv", "conv", "self", "pool")
        if kind == "conv":
            return self._same(self.shape[1], self.channels())
        return nn.Identity() if kind == "self" else nn.MaxPool2d(3, 1, 1)

    def _concat(self) -> nn.Module:
        if self.number(0, 5) == 0:
            return Concat(nn.Identity(), self._same(self.shape[1], self.shape[1]), dim=int(self.one(0, 2, 3)))  # type: ignore[call-overload]
        return Concat(*(self._branch() for _ in range(self.number(2, 4))))

    def _dense(self) -> nn.Module:
        c, growth, layers = self.shape[1], self.channels(), []
        for _ in range(self.number(2, 3)):
            layers.append(self._same(c, growth))
            c += growth
        return DenseBlock(*layers)

    def _split(self) -> nn.Module:
        c = self.shape[1]
        if c < 2:
            return self._conv()
        first = c // 2 if c % 2 == 0 and self.number(0, 1) else self.number(1, c - 1)
        return Split(self._same(c - first, c - first), first, self.number(1, 4), bool(self.one(True, False)))

    def _squeeze(self) -> nn.Module:
        return Squeeze(self.shape[1], self.number(1, 12), self.activation(), self.one(nn.Sigmoid, nn.Hardsigmoid)(), self.number(0, 3) == 0)  # type: ignore[operator]

    def _mlp(self) -> nn.Module:
        return Mlp(self.shape[1], self.channels(), self.shape[1] > 2)

    def _pool(self) -> nn.Module:
        h, w = self.shape[2:]
        kernel = self.number(1, min(3, h, w))
        kind, stride, padding, ceil = self.one(nn.MaxPool2d, nn.AvgPool2d), self.number(1, 2), self.number(0, kernel // 2), bool(self.one(True, False))
        adaptive = self.one(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)((self.number(1, h), self.number(1, w)))  # type: ignore[operator]
        return self.one(kind(kernel, stride, padding, ceil_mode=ceil), kind(kernel, stride, padding, ceil_mode=ceil), adaptive)  # type: ignore[operator, return-value]

    def _move(self) -> nn.Module:
        """Something that only moves numbers."""
        _, c, h, w = self.shape
        first, last = self.number(0, c - 1), self.number(0, h - 1)
        left, top, value = self.number(0, 2), self.number(0, 2), float(self.one(0.0, 0.5))  # type: ignore[arg-type]
        kinds: list[nn.Module] = [
            Lambda(f"channels from {first}", lambda x: x[:, first:]),
            Lambda(f"every other channel from {first}", lambda x: x[:, first::2]),
            Lambda(f"rows from {last}", lambda x: x[:, :, last:]),
            Lambda(f"pad {left}, 1, {top}, 0 with {value}", lambda x: F.pad(x, (left, 1, top, 0), value=value)),
            Lambda("transpose", lambda x: x.transpose(2, 3)),
        ]
        if h * w <= 200:
            kinds.append(nn.Upsample(scale_factor=(2, self.number(1, 2))))
        return self.one(*kinds)  # type: ignore[return-value]

    def _norm(self) -> nn.Module:
        c = self.shape[1]
        kinds: list[nn.Module] = [nn.BatchNorm2d(c), nn.Softmax(self.number(1, 3)), self.activation(), Lambda("2 x - 1", lambda x: 2 * x - 1)]
        return self.one(*kinds)  # type: ignore[return-value]

    def _twice(self) -> nn.Module:
        """One module that is called twice."""
        layer = self._same(self.shape[1], self.shape[1])
        return nn.Sequential(layer, self.activation(), layer)

    def head(self) -> nn.Module:
        _, c, h, w = self.shape
        flat = nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, self.number(1, 20)))
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(c, self.number(1, 40)), self.activation())
        last = nn.Sequential(Lambda("mean", lambda x: x.mean((2, 3))), nn.Linear(c, 12), nn.LayerNorm(12), nn.Linear(12, 7))
        return self.one(flat, pooled, pooled, last, nn.Identity())  # type: ignore[return-value]


def draw_network(draw: Draw, most: int = 4) -> tuple[nn.Module, Shape]:
    """(a network with random parameters, the shape of its input)."""
    shape = (int(draw(st.sampled_from((1, 1, 2, 3)))), *(int(draw(st.integers(low, high))) for low, high in ((1, 20), (7, 19), (7, 19))))  # type: ignore[call-overload]
    drawer = Drawer(draw, shape)  # type: ignore[arg-type]
    body = drawer.body(int(draw(st.integers(1, most))))  # type: ignore[call-overload]
    heads = [drawer.head() for _ in range(int(draw(st.sampled_from((1, 1, 1, 2)))))]  # type: ignore[call-overload]
    return Outputs(body, *heads), shape  # type: ignore[return-value]
