"""A task's network out of the commons, as an ordinary module, without its data, which may be gone. Imports torch, config, graph and tasks of npas."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.config import Task as TaskConfig
from stages.graph.rewrite import Replacement, apply_replacements
from stages.lifelong.commons import Commons
from stages.tasks import Task, make_task
from stages.tasks.models import build_model


def network_of(commons: Commons, name: str) -> nn.Module:
    """The network of a learnt task, in eval mode: dense shapes, pruned to ``commons.scheme(name)``. UsageError for a task that wasn't learnt."""
    facts = commons[name].facts
    config = TaskConfig(**facts["task"])
    module = build_model(config.model, len(facts["classes"]), config.seed) if config.task == "classification" else make_task(config).model()
    return loaded(commons, name, module)


def loaded(commons: Commons, name: str, module: nn.Module) -> nn.Module:
    """``network_of`` from a freshly built ``module``."""
    module = replaced(module, commons)
    module.load_state_dict(commons.state_dict(name))
    return module.eval()


def replaced(module: nn.Module, commons: Commons) -> nn.Module:
    """``module`` with the operators of the commons."""
    return apply_replacements(module, [Replacement.from_json(dict(r)) for r in commons.replacements])


def example_of(commons: Commons) -> Tensor:
    """Seeded noise that the network of any of its tasks takes, (1, ...)."""
    return torch.randn(1, *commons.shape, generator=torch.Generator().manual_seed(0))


def classes_of(task: Task) -> list[str]:
    """The names of the classes, of a task that has them."""
    return list(getattr(getattr(task, "data", None), "classes", ()))
