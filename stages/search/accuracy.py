"""What a candidate is worth: one-shot pruning that what stays makes up for, a short training that ends early when it is hopeless, batch norms estimated anew. Imports config, parallel, schemes and tasks of npas."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from torch import nn

from stages.config import Config
from stages.parallel import Handler
from stages.schemes import Scheme
from stages.search.candidate import Candidates
from stages.search.early_stop import CurveKeeper, StopRule
from stages.search.evaluator import Trained
from stages.search.network import open_candidates, open_network
from stages.tasks import FitHooks, Task, fit, recalibrate_bn
from stages.tasks.placed import placed
from stages.tasks.train import cpu_threads

RECALIBRATION = 256  # training images for the batch norms of a candidate
COMPARED = 128  # training images on which the outputs of a candidate without any training are compared with the network's


class FastEvaluation:
    """Evaluates candidates on the images of ``search_scheme.train_limit``; every candidate sees the same ones in the same order.

    After the training, and after pruning without one, the batch norms are estimated anew: their running averages are far behind after so few steps (measured: 10 % instead of 96 % after
    one epoch at rate 3).
    """

    def __init__(self, config: Config, task: Task, candidates: Candidates):
        self.config, self.task, self.candidates = config.search_scheme, task, candidates

    def train(self, scheme: Scheme, rule: StopRule | None = None) -> Trained:
        """Accuracy on val after ``epochs``, or where ``rule`` ended the training. With ``distill`` the searched network is the teacher: it knows more of an image than its label does."""
        c, curve = self.config, _Curve(CurveKeeper(self.config.epochs, rule))
        with cpu_threads(c.train_threads):  # of everything: more threads than cores wait for each other
            built, masks = self.candidates.pruned(scheme)
            fit(built.module, self.task, epochs=c.epochs, lr=c.lr, seed=c.seed, limit=c.train_limit, teacher=self.candidates.network if c.distill else None, distill=c.distill,
                masks=masks, hooks=curve, threads=c.train_threads, evaluate=False)  # fmt: skip
            return Trained(self.settled(built.module), tuple(curve.keeper.curve), curve.keeper.stopped)

    def one_shot(self, scheme: Scheme) -> float:
        """Accuracy on val when the candidate is pruned and not trained at all."""
        with cpu_threads(self.config.train_threads):
            return self.settled(self.candidates.pruned(scheme)[0].module)

    def damage(self, scheme: Scheme) -> float:
        """How far the outputs of the candidate, pruned and not trained at all, are from the searched network's: the task's distillation loss, which needs no labels and is 0 for the network itself.

        In both, batch norms take the statistics of the batch, as the candidate's would be estimated anew.
        """
        with cpu_threads(self.config.train_threads), torch.no_grad():
            module = self.candidates.pruned(scheme)[0].module
            batches, wanted = self._compared
            losses = [float(self.task.distill_loss(o, w, 1.0)) for o, w in zip(self._outputs(module, batches), wanted, strict=True)]
        return sum(losses) / len(losses)

    @cached_property
    def _compared(self) -> tuple[list[Any], list[Any]]:
        batches = [self.task.inputs(batch) for batch in self.task.batches("train", limit=COMPARED)]
        return batches, self._outputs(copy.deepcopy(self.candidates.network), batches)

    def _outputs(self, module: nn.Module, batches: list[Any]) -> list[Any]:
        """Of a module that is thrown away afterwards: the running statistics of its batch norms change."""
        with placed(module, self.task.device, train=False):
            for norm in module.modules():
                if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                    norm.train()
            return [module(batch) for batch in batches]

    def settled(self, module: nn.Module) -> float:
        """Accuracy on val with batch norms estimated anew."""
        recalibrate_bn(module, self.task, limit=RECALIBRATION)
        return self.task.evaluate(module)


class _Curve(FitHooks):
    def __init__(self, keeper: CurveKeeper):
        self.keeper = keeper

    def enough(self, step: int, total_steps: int, loss: float) -> bool:
        return self.keeper.step(step, total_steps, loss)


def serve_training(config: Config) -> Handler:
    """In a worker of the pool: answers (scheme, rule) with a Trained."""
    task, network, graph = open_network(config)
    evaluation = FastEvaluation(config, task, open_candidates(config, task, network, graph))
    return lambda request: evaluation.train(*request)
