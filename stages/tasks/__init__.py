"""What is being compressed: the Task protocol, its first implementation, and training. ``make_task(config.task)`` is the way in."""

from __future__ import annotations

from stages.config import Task as TaskConfig
from stages.errors import UsageError
from stages.tasks.alignment import feature_layers
from stages.tasks.hooks import FitHooks
from stages.tasks.models import load_network
from stages.tasks.recalibrate import recalibrate_bn
from stages.tasks.task import MEMBERS, Task
from stages.tasks.train import fit

__all__ = ["FitHooks", "Task", "feature_layers", "fit", "load_network", "make_task", "recalibrate_bn"]


def make_task(config: TaskConfig) -> Task:
    """The task of the configuration, with its data loaded. UsageError for an unknown task, model or data set."""
    from stages.tasks.imports import describe, is_reference, resolve, suggestion

    if config.task == "classification":
        from stages.tasks.classification import Classification

        return Classification(config)
    if not is_reference(config.task):
        raise UsageError(f"Unknown task '{config.task}'.", suggestion(config.task, ["classification", "package.module:Class"]))
    make = resolve(config.task, "task.task")
    try:
        task: Task = make(config)
    except UsageError:
        raise
    except Exception as error:  # the user's class may raise anything
        raise UsageError(
            f"The task '{config.task}' can't be made: {describe(error)}.", "It is called with the task section of the configuration; -vv shows the traceback."
        ) from error
    missing = [name for name in MEMBERS if not callable(getattr(task, name, None))]
    if missing:
        raise UsageError(f"The task '{config.task}' lacks {', '.join(missing)}.", "stages/tasks/task.py says what a task has; subclass Task.")
    return task
