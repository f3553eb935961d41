"""Which batch norm stands behind which layer, seen in one forward pass. Imports torch only."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class NormWatch:
    """Watches the next forward pass of ``module``; then ``pairs`` maps the path of each convolution or linear layer to that of the batch norm whose input is its very output.

    The order in which a module lists its parts doesn't tell (pre-activation networks), and a trace needs an example input, which a pruner doesn't have.
    """

    def __init__(self, module: nn.Module):
        self.pairs: dict[str, str] | None = None
        self._made: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, so that no id is used twice
        self._found: dict[str, str] = {}
        self._handles = [module.register_forward_hook(self._finish)]
        for path, part in module.named_modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                self._handles.append(part.register_forward_hook(lambda _, __, output, path=path: self._produced(path, output)))
            elif isinstance(part, _BatchNorm) and part.affine:
                self._handles.append(part.register_forward_pre_hook(lambda _, inputs, path=path: self._consumed(path, inputs)))

    def stop(self) -> None:
        """Leave the module as it was."""
        for handle in self._handles:
            handle.remove()
        self._made = {}

    def _produced(self, path: str, output: Any) -> None:
        self._made[id(output)] = (path, output)

    def _consumed(self, path: str, inputs: Any) -> None:
        if id(inputs[0]) in self._made:
            self._found[self._made[id(inputs[0])][0]] = path

    def _finish(self, *_: Any) -> None:
        self.pairs = self._found
        self.stop()
