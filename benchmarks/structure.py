"""Does filter pruning find the same dependent layers as torch-pruning, and the same smaller network? Prints a Markdown table.

    python benchmarks/structure.py [--networks resnet18,densenet121] [--size 64]

Every class of channels of a torchvision network is pruned to half by the L2 norms of its filters. torch-pruning (Fang et al. 2023, DepGraph) is asked, for the same filters of the same layer,
which rows and columns of which layers go with them; then it removes them, and its smaller network is compared with npas's masked one: sizes of all weights, and outputs on random images.
Exits with 1 when a network differs.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers.networks import build
from stages.graph import Graph, couplings, trace
from stages.graph.channels import places
from stages.graph.flow import Flow, flow
from stages.schemes import apply_masks
from stages.schemes.masks import channel_mask, mask_class, producers

NETWORKS = (
    "alexnet", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small", "resnet50", "resnext50_32x4d", "regnet_y_400mf", "squeezenet1_1", "vgg11_bn",
)  # fmt: skip
RATE = 2.0
Cut = dict[tuple[str, str], frozenset[int]]  # (module path, "rows" or "columns") -> which


@dataclass(frozen=True)
class Result:
    """``same`` of ``asked`` sets of filters have the dependants that torch-pruning finds; ``sizes``: its network has the weights that npas's masks leave; ``error``: the largest difference of outputs."""

    name: str
    asked: int
    same: int
    sizes: bool
    parameters: tuple[int, int]
    error: float
    largest: float

    @property
    def agrees(self) -> bool:
        """Whether nothing differs but roundings."""
        return self.same == self.asked and self.sizes and self.error <= 1e-5 * self.largest


@dataclass(frozen=True)
class Loss:
    """The ``filters`` of one ``layer`` that are pruned, and the classes that they belong to (more than one where a grouped convolution reads them)."""

    layer: str
    filters: Sequence[int]
    classes: Sequence[Mapping[str, str]]


def losses(graph: Graph, tensors: Mapping[str, Tensor]) -> tuple[list[Loss], dict[str, Tensor]]:
    """What each set of classes with the same members loses, and the masks. torch-pruning can only take the same filters of each group: all take those of the first."""
    alike: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for members in couplings(graph):
        alike.setdefault(tuple(members), []).append(members)
    found, masks = [], dict[str, Tensor]()
    for classes in alike.values():
        layer, keeps = producers(classes[0])[0], dict[int, Tensor]()
        filters: list[int] = []
        for members in classes:
            rows = places(members[layer])[1] or range(len(tensors[f"{layer}.weight"]))
            keep = keeps.setdefault(len(rows), channel_mask(tensors, members, RATE))
            mask_class(masks, tensors, members, keep)
            filters += [row for row, kept in zip(rows, keep.tolist(), strict=True) if not kept]
        found.append(Loss(layer, filters, classes))
    return found, masks


def our_cut(graph: Graph, traced: Flow, loss: Loss) -> Cut:
    """Which rows and columns of which layers vanish with these filters."""
    made = next(layer for layer in graph if layer.module == loss.layer)
    gone, found = traced.of[made.name][list(loss.filters)], Cut()
    for layer in graph:
        if layer.params and layer.op != "constant" and layer.name in traced.of:
            found[layer.module, "rows"] = frozenset(np.flatnonzero(np.isin(traced.of[layer.name], gone)).tolist())
        if layer.name in traced.reads:
            found[layer.module, "columns"] = frozenset(np.flatnonzero(np.isin(traced.reads[layer.name], gone)).tolist())
    return {key: which for key, which in found.items() if which}


def compare(name: str, size: int) -> Result:
    """Prune ``name`` in both ways."""
    import torch_pruning as tp

    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size)
    module = build(name, 0, size, **({"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}))
    masked, graph = copy.deepcopy(module), trace(module, x)
    traced, (lost, masks) = flow(graph), losses(graph, module.state_dict())
    apply_masks(masked, masks)
    columns = (tp.prune_conv_in_channels, tp.prune_linear_in_channels)
    paths = {m: path for path, m in module.named_modules()}

    def group(loss: Loss, filters: Sequence[int]) -> Any:
        made = module.get_submodule(loss.layer)
        return dependencies.get_pruning_group(made, tp.prune_linear_out_channels if isinstance(made, nn.Linear) else tp.prune_conv_out_channels, list(filters))

    def their_cut(found: Any) -> Cut:
        cut: dict[tuple[str, str], set[int]] = {}
        for dependency, numbers in found:
            if dependency.layer in paths:  # its own nodes for sums and the like have no parameters
                cut.setdefault((paths[dependency.layer], "columns" if dependency.pruning_fn in columns else "rows"), set()).update(map(int, numbers))
        return {key: frozenset(which) for key, which in cut.items()}

    dependencies = tp.DependencyGraph().build_dependency(module, x)
    cuts = [our_cut(graph, traced, loss) for loss in lost]
    same = sum(cut == their_cut(group(loss, loss.filters)) for cut, loss in zip(cuts, lost, strict=True))
    left = {path: np.arange(m.weight.shape[0]) for path, m in module.named_modules() if isinstance(getattr(m, "weight", None), Tensor)}
    for loss in lost:  # one after the other: the filters of a layer that has lost some are counted anew
        found = group(loss, np.flatnonzero(np.isin(left[loss.layer], loss.filters)).tolist())
        for (path, side), which in their_cut(found).items():
            if side == "rows":
                left[path] = np.delete(left[path], sorted(which))
        found.prune()
    with torch.inference_mode():
        expected, got = masked(x), module(x)
    return Result(name, len(lost), same, _sizes(masked, module, cuts), _parameters(masked, module), float((got - expected).abs().max()), float(expected.abs().max()))


def _parameters(before: nn.Module, after: nn.Module) -> tuple[int, int]:
    return sum(p.numel() for p in before.parameters()), sum(p.numel() for p in after.parameters())


def _sizes(masked: nn.Module, smaller: nn.Module, cuts: Sequence[Cut]) -> bool:
    """Whether every weight of ``smaller`` has the rows and columns that ``cuts`` leave of ``masked``'s."""
    for path, m in masked.named_modules():
        if not isinstance(getattr(m, "weight", None), Tensor):
            continue
        rows, columns = (len(frozenset().union(*(cut.get((path, side), ()) for cut in cuts))) for side in ("rows", "columns"))
        wanted = [m.weight.shape[0] - rows, *m.weight.shape[1:]]
        if m.weight.ndim > 1:
            wanted[1] -= columns // getattr(m, "groups", 1)
        if list(smaller.get_submodule(path).weight.shape) != wanted:
            return False
    return True


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--size", type=int, default=64, help="pixels of the images")
    args = parser.parse_args()
    print("| network | sets of filters | same dependants | same sizes | parameters | after | max difference | largest output |\n|---|---|---|---|---|---|---|---|")
    results = []
    for name in args.networks.split(","):
        r = compare(name, max(args.size, 96) if name == "inception_v3" else args.size)
        results.append(r)
        print(f"| {r.name} | {r.asked} | {r.same} | {'yes' if r.sizes else 'no'} | {r.parameters[0]} | {r.parameters[1]} | {r.error:.2g} | {r.largest:.3g} |", flush=True)
    sys.exit(0 if all(r.agrees for r in results) else 1)


if __name__ == "__main__":
    main()
