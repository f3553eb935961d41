"""Workers for jobs that don't need each other: processes of this machine (local.py) or of a Ray cluster (cluster.py). Imports errors only.

>>> with open_pool(make_handler, settings, workers=4, cpus={0, 1, 2, 3}) as pool:
...     for name, request in requests.items():
...         pool.submit(name, request)
...     answers = dict(pool.next() for _ in requests)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any

from stages.parallel.local import LocalPool
from stages.parallel.pool import Handler, Pool


def open_pool(make: Callable[..., Handler], *args: Any, workers: int | str = 1, cpus: Collection[int] = (), threads: int = 1, cuda_devices: int = 0) -> Pool:
    """``workers`` processes that each answer requests by ``make(*args)(request)``; "ray": as many as the cluster at $RAY_ADDRESS (or a local one) has room for.

    ``make`` (a function of a module), ``args``, requests and answers are pickled. ``cpus`` are shared out among the processes of this machine (with fewer cores than
    workers, several share one); () leaves them alone. ``threads`` is how many cores a worker keeps busy, which Ray reserves for it. With ``cuda_devices`` each worker
    sees one of them. UsageError when Ray is asked for and not installed.
    """
    if workers == "ray":
        from stages.parallel.cluster import open_ray_pool

        return open_ray_pool(make, args, cpus, threads, cuda_devices > 0)
    count = int(workers)
    return LocalPool(make, args, share_out(cpus, count), [{"CUDA_VISIBLE_DEVICES": visible(i % cuda_devices)} if cuda_devices else {} for i in range(count)])


def share_out(cpus: Collection[int], workers: int) -> list[tuple[int, ...]]:
    """The cores of each worker: equal runs of neighbours, or, where there are fewer cores than workers, one core that several share.

    >>> share_out(range(5), 2), share_out((4, 7), 3)
    ([(0, 1, 2), (3, 4)], [(4,), (7,), (4,)])
    """
    cores = sorted(cpus)
    if len(cores) < workers:
        return [(cores[i % len(cores)],) if cores else () for i in range(workers)]
    share, extra = divmod(len(cores), workers)
    starts = [i * share + min(i, extra) for i in range(workers + 1)]
    return [tuple(cores[a:b]) for a, b in zip(starts, starts[1:], strict=False)]


def visible(number: int) -> str:
    """The CUDA device ``number`` of those that this process sees, as a child must be told."""
    listed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return listed[number] if listed else str(number)


__all__ = ["Handler", "Pool", "open_pool", "share_out", "visible"]
