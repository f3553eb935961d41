"""One more task into the network: learn, prune, share (LPS, Wang et al. 2020, algorithm 1). Imports torch, config, progress, pruners, schemes and tasks of npas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from stages.config import Lifelong, SearchPruner
from stages.lifelong.claim import Beside, Claim
from stages.lifelong.commons import Commons, Learnt
from stages.lifelong.stake import Stake, stakes
from stages.progress import Progress, Silent
from stages.schemes import DENSE, Scheme, check_zeros
from stages.tasks import Task, fit, recalibrate_bn
from stages.tasks.train import cpu_threads

SILENT = Silent()
CHECKPOINTS = ("learn.pt", "claim.pt")


def learn(commons: Commons, name: str, task: Task, start: nn.Module, settings: Lifelong, folder: Path, progress: Progress = SILENT) -> Commons:
    """``commons`` with the task ``name``, trained from ``start`` (changed in place), with a checkpoint an epoch in ``folder``, from which an interrupted training goes on.

    First all free weights learn the task, beside the frozen ones; then ADMM prunes them to the task's part while the sharing mask is learnt; then what stays is retrained. Weights of
    earlier tasks are never changed, nor is anything drawn at random. UsageError when not enough is free.
    """
    s, wanted, module = settings, stakes(commons, settings), start
    common: dict[str, Any] = {"lr": s.lr, "weight_decay": s.weight_decay, "seed": s.seed, "progress": progress}
    fit(module, task, epochs=s.learn_epochs, hooks=Beside(module, wanted), checkpoint=folder / CHECKPOINTS[0], description=f"{name}: learning", **common)
    scheme = scheme_for(commons, wanted)
    admm = SearchPruner(prune_share=s.prune_share, admm_rho=s.admm_rho, admm_stages=s.admm_stages)
    claim = Claim(module, scheme, wanted, admm, s.gate_lr)
    rows = fit(module, task, epochs=s.epochs, masks=claim.masks, hooks=claim, checkpoint=folder / CHECKPOINTS[1], description=f"{name}: pruning and sharing", **common)
    with cpu_threads(task.threads):
        recalibrate_bn(module, task)
    check_zeros(module, scheme, {key: mask.cpu() for key, mask in claim.masks.items()})
    state = module.state_dict()
    used = {path: claim.used(f"{path}.weight") for path in commons.parts}
    own = {key: tensor.clone() for key, tensor in state.items() if key not in wanted}
    return commons.added(name, Learnt(len(commons.tasks) + 1, used, own, {"history": rows}), state)


def scheme_for(commons: Commons, wanted: Mapping[str, Stake]) -> Scheme:
    """The scheme that the network of a task with these stakes will have."""
    layers = {}
    for path, part in commons.parts.items():
        stake, count = wanted[f"{path}.weight"], part.owners.shape[1]
        kept = stake.own + stake.reused
        layers[path] = DENSE if kept == count else replace(part.layer, rate=count / kept)
    return Scheme(layers)
