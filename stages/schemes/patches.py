"""What a convolution or a linear layer reads, as patches of its input: the vectors that its weights, as a matrix, are multiplied with. Imports graph only of npas, and torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from stages.graph.retype import conv_attrs


class PatchDrawer:
    """Draws patches at random places, as many from each image, the same ones each time. ``number`` is the seed: layers that read the same tensor should differ in it."""

    def __init__(self, number: int, per_image: int):
        self.generator, self.per_image = torch.Generator().manual_seed(number), per_image

    def __call__(self, layer: nn.Module, inputs: Tensor) -> Tensor:
        """(images, places, D) from (images, I, H, W) with D = I * kh * kw, or from (images, ..., D) in front of a linear layer; fewer places where there are no more."""
        x = inputs.detach()
        if not isinstance(layer, nn.Conv2d):
            x = x.reshape(len(x), -1, x.shape[-1])
            return x.gather(1, self._places(len(x), x.shape[1])[..., None].expand(-1, -1, x.shape[2]).to(x.device)).cpu()
        a = conv_attrs(layer)
        high, wide = a["padding"]
        spans = [d * (k - 1) + 1 for d, k in zip(a["dilation"], a["kernel"], strict=True)]
        windows = nn.functional.pad(x, (wide, wide, high, high)).unfold(2, spans[0], a["stride"][0]).unfold(3, spans[1], a["stride"][1])
        windows = windows[..., :: a["dilation"][0], :: a["dilation"][1]]  # (N, I, H', W', kh, kw), a view
        chosen = self._places(len(x), windows.shape[2] * windows.shape[3])
        row, column = chosen // windows.shape[3], chosen % windows.shape[3]
        return windows[torch.arange(len(x))[:, None], :, row, column].flatten(2).cpu()

    def _places(self, images: int, places: int) -> Tensor:
        return torch.rand(images, places, generator=self.generator).topk(min(self.per_image, places), dim=1).indices


@torch.no_grad()
def watch(network: nn.Module, seen: Mapping[str, Callable[[nn.Module, Tensor], None]], images: Iterable[Tensor]) -> None:
    """Run ``network`` in eval mode over ``images``, batches of its inputs; each module (by path) of ``seen`` is shown to its function with its input. The network is left as it was."""
    hooks = [network.get_submodule(path).register_forward_pre_hook(lambda module, inputs, look=look: look(module, inputs[0])) for path, look in seen.items()]
    modes, home = [(m, m.training) for m in network.modules()], next(network.parameters()).device
    try:
        network.eval()
        for batch in images:
            network(batch.to(home))
    finally:
        for hook in hooks:
            hook.remove()
        for m, mode in modes:
            m.training = mode
