"""Statistics of batch norms, estimated anew after the weights have changed. Imports tasks/ of npas."""

from __future__ import annotations

import torch
from torch import nn

from stages.tasks.placed import placed
from stages.tasks.task import Task


@torch.no_grad()
def recalibrate_bn(module: nn.Module, task: Task, limit: int = 0) -> None:
    """Estimate the running mean and variance of every batch norm anew from (the first ``limit`` of) the training images; weights stay. The module ends in eval mode."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    with placed(module, task.device, train=False):
        for norm in norms:
            norm.train()
        for batch in task.batches("train", limit=limit):
            module(task.inputs(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
