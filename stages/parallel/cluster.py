"""Workers on a Ray cluster: one actor each. Imports errors and pool; Ray (extra npas[ray]) in functions.

A worker needs npas and, under the same path, the project folder (task data, replace_ops/model.pt): the driver's machine has both, others see them on a shared file system.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

from stages.errors import UsageError, WorkerLost
from stages.parallel.pool import Answering, Handler, Member, Pool


def open_ray_pool(make: Callable[..., Handler], args: Sequence[Any], cpus: Collection[int] = (), threads: int = 1, cuda: bool = False) -> Pool:
    """As many workers as the cluster at $RAY_ADDRESS has room for: ``threads`` cores each, and one GPU each with ``cuda``.

    Without $RAY_ADDRESS a cluster is started on this machine, on the cores ``cpus`` (all of them for ()), and ended with the pool. An open connection of this process is used.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("workers: ray needs Ray, which is not installed.", "pip install 'npas[ray]', or give the number of local processes.") from None
    address, connected = os.environ.get("RAY_ADDRESS") or "local", ray.is_initialized()
    local = address == "local" and not connected
    if not connected:
        quiet: dict[str, Any] = {"include_dashboard": False, "num_cpus": len(cpus) or None} if local else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"Can't reach the Ray cluster at {address}: {error}.", "Check RAY_ADDRESS, and that Ray's versions agree.") from None
    resources = ray.cluster_resources()
    size = int(resources.get("GPU", 0) if cuda else resources.get("CPU", 0) // threads)
    if size < 1:
        if not connected:
            ray.shutdown()
        raise UsageError(f"The Ray cluster has no room for a worker of {threads} cores{' and a GPU' if cuda else ''}.", "Add machines, or lower search_scheme.train_threads.")
    return RayPool((make, tuple(args), os.getcwd(), tuple(cpus) if local else ()), size, {"num_cpus": threads, "num_gpus": int(cuda)}, disconnect=not connected)


class RayPool(Pool):
    """``size`` actors that need ``resources`` each."""

    def __init__(self, job: tuple[Any, ...], size: int, resources: dict[str, int], disconnect: bool):
        super().__init__(size)
        self._job, self._resources, self._disconnect = job, resources, disconnect

    def close(self) -> None:
        """Also ends the connection, and the cluster that was started for it."""
        import ray

        super().close()
        if self._disconnect and ray.is_initialized():
            ray.shutdown()

    def _hire(self, number: int) -> RayWorker:
        return RayWorker(self._job, self._resources)

    def _ready(self, members: Sequence[Member], timeout: float | None) -> Sequence[Member]:
        import ray

        by_answer = {m.answer: m for m in members if isinstance(m, RayWorker)}
        answered, _ = ray.wait(list(by_answer), num_returns=1, timeout=timeout)
        return [by_answer[a] for a in answered]


class RayWorker:
    """One actor."""

    def __init__(self, job: tuple[Any, ...], resources: dict[str, int]):
        import ray

        actor: Any = ray.remote(_Actor)
        self._actor: Any = actor.options(**resources).remote(*job)
        self.answer: Any = None

    def send(self, request: Any) -> None:
        """See Member."""
        self.answer = self._actor.answer.remote(request)

    def receive(self) -> Any:
        """See Member."""
        import ray

        try:
            return ray.get(self.answer)
        except ray.exceptions.RayError as error:
            raise WorkerLost(f"A worker of the Ray cluster was lost ({type(error).__name__}).", "Look at the log of the cluster.") from None

    def end(self) -> None:
        """See Member."""
        import ray

        ray.kill(self._actor)


class _Actor:
    """What runs in the cluster: as in the driver's folder, where that is visible."""

    def __init__(self, make: Callable[..., Handler], args: tuple[Any, ...], folder: str, cpus: tuple[int, ...]):
        if os.path.isdir(folder):
            os.chdir(folder)
            sys.path.insert(0, folder)
        if cpus:
            os.sched_setaffinity(0, cpus)
        self._answering = Answering(make, args)

    def answer(self, request: Any) -> Any:
        return self._answering(request)
