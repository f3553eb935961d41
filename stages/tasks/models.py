"""``task.model`` -> nn.Module: a network of the zoo, of torchvision, or the user's own; and networks back from model.pt. Imports errors, artifacts and tasks/ of npas."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.artifacts import load_checkpoint
from stages.errors import ArtifactError, UsageError
from stages.tasks.imports import describe, is_reference, resolve, suggestion
from stages.tasks.task import Task
from stages.tasks.zoo import ZOO


def build_model(spec: str, num_classes: int, seed: int) -> nn.Module:
    """A freshly initialised network; the same ``seed`` gives the same weights and leaves torch's random state alone. UsageError when ``spec`` names none."""
    make = _maker(spec, num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = make()
        except Exception as error:  # a user's function may raise anything
            raise UsageError(f"The network '{spec}' can't be built: {describe(error)}.", "Mend the function; -vv shows the traceback.") from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"'{spec}' of task.model returned a {type(module).__name__}, not an nn.Module.", "Return the network.")
    return module


def _maker(spec: str, num_classes: int) -> Callable[[], Any]:
    if spec in ZOO:
        return lambda: ZOO[spec](num_classes)
    if is_reference(spec):
        call = resolve(spec, "task.model")
        return lambda: call(num_classes=num_classes) if _accepts(call, "num_classes") else call()
    from stages.tasks.vision import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if spec not in names:
        hint = (
            "It looks like a file: set task.weights to it, and task.model to the network it belongs to."
            if Path(spec).exists()
            else suggestion(spec, [*ZOO, *names])
        )
        raise UsageError(f"Unknown model '{spec}': neither in the zoo ({', '.join(ZOO)}) nor in torchvision.", f"{hint} Your own: package.module:callable.")
    return lambda: torchvision.models.get_model(spec, weights=None, num_classes=num_classes)


def _accepts(call: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # some C callables have no signature
        return False
    return any(p.name == name and p.kind != p.POSITIONAL_ONLY for p in parameters)


def load_network(path: Path | str, task: Task) -> nn.Module:
    """The network of a model.pt, network.pt or weights.pt: the task's model, the replacements and filter types recorded there, its weights; in eval mode. ArtifactError when they don't fit together."""
    content = load_checkpoint(path)
    return restore(content, task, str(path))


def restore(content: Mapping[str, Any], task: Task, where: str) -> nn.Module:
    """``load_network`` for a checkpoint that is already loaded."""
    from stages.graph.retype import retype_modules_
    from stages.graph.rewrite import Replacement, apply_replacements

    module = apply_replacements(task.model(), [Replacement.from_json(r) for r in content.get("replacements", ())])
    retype_modules_(module, content.get("filter_types", {}))
    problem = mismatch(module, content["state_dict"])
    if problem:
        hint = f"It was made with task.model {content.get('model')}: set that again, or run the pipeline anew."
        raise ArtifactError(f"{where} does not belong to this network: {problem}.", hint)
    module.load_state_dict(content["state_dict"])
    return module.eval()


def load_weights(module: nn.Module, path: Path | str, keep: Iterable[str] = ()) -> None:
    """The user's trained weights (``task.weights``) into ``module``: a state_dict, or a mapping with one under "state_dict" or "model"; "module." prefixes are dropped. Tensors of ``keep`` stay."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"No weights file {path}.", "Correct task.weights.") from None
    except Exception as error:  # torch raises many kinds for what is no checkpoint
        raise UsageError(
            f"Can't read the weights {path}: {type(error).__name__}.",
            "Save them with torch.save(model.state_dict(), path): whole pickled models are not loaded.",
        ) from None
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, Mapping) and isinstance(content.get(key), Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UsageError(f"The weights {path} are no state_dict.", "Save them with torch.save(model.state_dict(), path).")
    state = {str(name).removeprefix("module."): value for name, value in content.items()}
    own = module.state_dict()
    state |= {name: own[name] for name in keep}
    problem = mismatch(module, state)
    if problem:
        raise UsageError(
            f"The weights {path} don't fit the network: {problem}.", "Set task.model (and the number of classes of the data) to what they were trained with."
        )
    module.load_state_dict(state)


def mismatch(module: nn.Module, state: Mapping[str, Tensor]) -> str:
    """The first reason why ``state`` can't be loaded ("3 keys missing: a, b, c"), or "" when it can."""
    wanted = module.state_dict()

    def named(names: list[str], what: str) -> str:
        return f"{len(names)} {'key' if len(names) == 1 else 'keys'} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""

    wrong = [f"{k} ({tuple(state[k].shape)} instead of {tuple(wanted[k].shape)})" for k in wanted if k in state and state[k].shape != wanted[k].shape]
    found = [named([k for k in wanted if k not in state], "missing"), named([k for k in state if k not in wanted], "unknown"), named(wrong, "of another shape")]
    return next((part for part in found if part), "")
