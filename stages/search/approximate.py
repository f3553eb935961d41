"""The weights with which a smaller chain of convolutions comes closest to a larger convolution, from the second moments of what that one reads. Imports graph and schemes/shrinkage of npas, and torch.

A convolution is linear in the patches p of its input, y = W p + b, and so is every replacement: y' = W' p + b'. Its mean squared error is tr((W - W') G (W - W')^T) with the patches' covariance G,
whatever number of images G comes from. 1x1 and 3x3 have the minimum in closed form, a linear regression on the inner taps. The separable types are found by alternating least squares:
with the other factors fixed each factor is again a regression; the last 1x1 in closed form, the others by some steps of conjugate gradients from where they are, so that no step raises the
error and 512 channels take seconds. All in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.graph.filter_types import bottleneck
from stages.schemes.shrinkage import shrinkage

RIDGE = 1e-6  # of the mean variance, added to every variance: taps that are always zero, or equal, have no unique solution
DW_STEPS, MIX_STEPS = 20, 6  # of conjugate gradients in each sweep: for depthwise kernels, and for the first 1x1 of 1x1-3x3dw-1x1, where a step costs as much as a pass over the covariance


@dataclass(frozen=True)
class Moments:
    """Of patches as vectors of I * kh * kw numbers: their mean (D,) and covariance (D, D)."""

    mean: Tensor
    covariance: Tensor

    @staticmethod
    def of(patches: Tensor) -> Moments:
        """From samples (n, D)."""
        x = patches.double()
        mean = x.mean(0)
        x -= mean
        return Moments(mean, x.T @ x / len(x))

    def shrunk(self, n: int) -> Moments:
        """With the covariance of few samples (``n``) drawn towards equal variances, as far as is best: so it has full rank."""
        size, trace = len(self.mean), float(self.covariance.trace())
        share = shrinkage(size, n, trace, float(self.covariance.square().sum()))
        return Moments(self.mean, (1 - share) * self.covariance + share * trace / size * torch.eye(size, dtype=self.covariance.dtype))


def approximate(weight: Tensor, bias: Tensor | None, moments: Moments, attrs: Mapping[str, Any], filter_type: str, sweeps: int) -> dict[str, Tensor]:
    """The state_dict (float32) of the ``filter_type`` that comes closest to ``weight`` (O, I, kh, kw) and ``bias`` (O,); {} for skip. ``sweeps`` are the rounds of alternation."""
    if filter_type == "skip":
        return {}
    kernel = weight.detach().double()
    size = 1 if filter_type == "1x1" else 3
    best = _regress(kernel, moments.covariance, size)
    taps = _taps(kernel.shape[1:], size)
    inner = moments.covariance[taps][:, taps]
    if filter_type in ("1x1", "3x3"):
        found = {"pw.weight" if filter_type == "1x1" else "conv.weight": best}
    elif filter_type == "3x3dw-1x1":
        found = separable(best, inner, sweeps)
    else:
        found = bottlenecked(best, inner, bottleneck(attrs), sweeps)
    last = next(reversed(found)).rpartition(".")[0]
    lost = (kernel - composed(found, kernel.shape)).flatten(1) @ moments.mean
    found[f"{last}.bias"] = lost if bias is None else bias.detach().double() + lost
    return {name: tensor.float() for name, tensor in found.items()}


def composed(tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The one kernel of ``shape`` (O, I, kh, kw) that computes what a replacement does, biases apart; of {} (skip) the identity."""
    if not tensors:
        return _centred(torch.eye(shape[0], dtype=torch.float64)[..., None, None], shape)
    if "conv.weight" in tensors:
        return _centred(tensors["conv.weight"].double(), shape)
    kernel = tensors["pw.weight"].double()
    if "dw.weight" in tensors:
        kernel = kernel * tensors["dw.weight"].double().transpose(0, 1)  # (O, m, 3, 3)
    if "mix.weight" in tensors:
        kernel = torch.einsum("omyx,mi->oiyx", kernel, tensors["mix.weight"].double()[:, :, 0, 0])
    return _centred(kernel, shape)


def separable(kernel: Tensor, covariance: Tensor, sweeps: int) -> dict[str, Tensor]:
    """3x3dw-1x1 for a kernel (O, I, 3, 3): "dw.weight" (I, 1, 3, 3) and "pw.weight" (O, I, 1, 1)."""
    outputs, inputs = kernel.shape[:2]
    wanted, g = kernel.view(outputs, inputs, 9), covariance.view(inputs, 9, inputs, 9)
    target = (covariance @ kernel.flatten(1).T).view(inputs, 9, outputs)
    dw = _leading(wanted.transpose(0, 1))[1]
    pw = torch.empty(0)
    for sweep in range(sweeps + 1):
        pw = _solve(torch.einsum("it,itju,ju->ij", dw, g, dw), torch.einsum("it,ito->io", dw, target)).T
        if sweep < sweeps:
            both = (g * (pw.T @ pw)[:, None, :, None]).reshape(covariance.shape)
            dw = _unit(_descend(lambda d: (both @ d.flatten()).view(d.shape), torch.einsum("oi,ito->it", pw, target), dw, DW_STEPS))  # noqa: B023 - used at once
    return {"dw.weight": dw.reshape(inputs, 1, 3, 3), "pw.weight": pw[..., None, None]}


def bottlenecked(kernel: Tensor, covariance: Tensor, width: int, sweeps: int) -> dict[str, Tensor]:
    """1x1-3x3dw-1x1 for a kernel (O, I, 3, 3): "mix.weight" (m, I, 1, 1), "dw.weight" (m, 1, 3, 3) and "pw.weight" (O, m, 1, 1) with m = ``width``.

    It starts from what is exact in one factor (each input on its own, or each output where those are fewer), so it ends at least as close as 3x3dw-1x1 where the layer doesn't narrow.
    """
    outputs, inputs = kernel.shape[:2]
    target = (covariance @ kernel.flatten(1).T).view(inputs, 9, outputs)
    mix, dw = _start(kernel, covariance, width, sweeps)
    pw = torch.empty(0)
    for sweep in range(sweeps + 1):
        chain = (mix[:, :, None] * dw[:, None, :]).flatten(1)  # (m, 9 I): what the depthwise convolution puts out, as kernels
        seen = chain @ covariance
        pw = _solve(seen @ chain.T, seen @ kernel.flatten(1).T).T
        if sweep < sweeps:
            mix = _unit(_fit_mix(mix, dw, pw, covariance, target))
            dw = _unit(_fit_dw(mix, dw, pw, covariance, target))
    return {"mix.weight": mix[..., None, None], "dw.weight": dw.reshape(width, 1, 3, 3), "pw.weight": pw[..., None, None]}


def _start(kernel: Tensor, covariance: Tensor, width: int, sweeps: int) -> tuple[Tensor, Tensor]:
    """mix (m, I) and dw (m, 9); what the width has beyond the narrower end is drawn from a fixed seed."""
    outputs, inputs = kernel.shape[:2]
    if inputs <= outputs:
        mix, dw = torch.eye(inputs, dtype=kernel.dtype), separable(kernel, covariance, sweeps)["dw.weight"].view(inputs, 9)
    else:
        mix, dw = _leading(kernel.flatten(2))
    generator = torch.Generator().manual_seed(0)
    more = width - len(mix)
    drawn = [torch.randn(more, n, dtype=kernel.dtype, generator=generator) for n in (inputs, 9)]
    return torch.cat([mix, _unit(drawn[0])]), torch.cat([dw, _unit(drawn[1])])


def _fit_dw(mix: Tensor, dw: Tensor, pw: Tensor, covariance: Tensor, target: Tensor) -> Tensor:
    """A better dw (m, 9) for the other factors."""
    width, inputs = mix.shape
    g = covariance.view(inputs, 9, inputs, 9).permute(1, 3, 0, 2)
    between = (mix @ g @ mix.T).permute(2, 0, 3, 1) * (pw.T @ pw)[:, None, :, None]  # (m, 9, m, 9)
    normal = between.reshape(9 * width, 9 * width)
    wanted = torch.einsum("itm,mi->mt", target @ pw, mix)
    return _descend(lambda d: (normal @ d.flatten()).view(d.shape), wanted, dw, DW_STEPS)


def _fit_mix(mix: Tensor, dw: Tensor, pw: Tensor, covariance: Tensor, target: Tensor) -> Tensor:
    """A better mix (m, I) for the other factors."""
    between = pw.T @ pw

    def normal(a: Tensor) -> Tensor:
        seen = (a[:, :, None] * dw[:, None, :]).flatten(1) @ covariance
        return ((between @ seen).view(*a.shape, 9) * dw[:, None, :]).sum(2)

    return _descend(normal, torch.einsum("itm,mt->mi", target @ pw, dw), mix, MIX_STEPS)


def _descend(normal: Callable[[Tensor], Tensor], wanted: Tensor, x: Tensor, steps: int) -> Tensor:
    """Conjugate gradients for ``normal(x) = wanted``, a positive semi-definite linear map: each of the ``steps`` from ``x`` lowers the quadratic form."""
    residual = wanted - normal(x)
    direction, square, floor = residual, residual.square().sum(), 1e-24 * wanted.square().sum()
    for _ in range(steps):
        if square <= floor:
            break
        moved = normal(direction)
        step = square / (direction * moved).sum()
        x, residual = x + step * direction, residual - step * moved
        last, square = square, residual.square().sum()
        direction = residual + square / last * direction
    return x


def _regress(kernel: Tensor, covariance: Tensor, size: int) -> Tensor:
    """The size x size kernel in the middle of a larger one that comes closest to it: (O, I, size, size)."""
    if kernel.shape[2:] == (size, size):
        return kernel
    taps = _taps(kernel.shape[1:], size)
    found = _solve(covariance[taps][:, taps], covariance[taps] @ kernel.flatten(1).T)
    return found.T.reshape(*kernel.shape[:2], size, size)


def _taps(shape: tuple[int, ...], size: int) -> Tensor:
    """Positions of the middle size x size taps of every channel in a flattened patch (I, kh, kw)."""
    numbers = torch.arange(shape[0] * shape[1] * shape[2]).view(*shape)
    top, left = (shape[1] - size) // 2, (shape[2] - size) // 2
    return numbers[:, top : top + size, left : left + size].reshape(-1)


def _centred(kernel: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A smaller kernel in the middle of zeros of ``shape``."""
    vertical, horizontal = ((big - small) // 2 for big, small in zip(shape[2:], kernel.shape[2:], strict=True))
    return torch.nn.functional.pad(kernel, (horizontal, horizontal, vertical, vertical))


def _leading(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The best u v^T of each of (n, a, b): u (n, a) and v (n, b), both of length 1."""
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    return u[..., 0], v[:, 0]


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)


def _solve(symmetric: Tensor, wanted: Tensor) -> Tensor:
    """x of ``(symmetric + ridge) x = wanted`` for a positive semi-definite matrix."""
    ridge = (RIDGE * symmetric.diagonal().mean()).clamp_min(1e-30)
    factor = torch.linalg.cholesky(symmetric + ridge * torch.eye(len(symmetric), dtype=symmetric.dtype))
    return torch.cholesky_solve(wanted, factor)
