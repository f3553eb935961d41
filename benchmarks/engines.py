"""CPU inference engines beside npas, dense and pruned, in interleaved rounds: one command installs the engines, converts the networks, checks every output and writes the tables.

    python benchmarks/engines.py [--models vgg16,resnet18] [--engines onnxruntime,ncnn,npas] [--peers-only] [--threads 1,2] [--rounds 30] [--runs 3] [--out FOLDER]

Run it with the Python of npas's environment, on Linux. Engines get environments of their own in $XDG_CACHE_HOME/npas/engines (about 6 GB, most of it three times PyTorch), and
converted networks are kept there (about 4 GB for all five); PIP_* variables reach pip. The first run takes half an hour for that. Writes engines.json and engines.md into the folder after
each network, so that an interrupted run keeps what it has.

How it is fair: fp32 everywhere, the engine's own best settings (see peers/adapters), input bound before timing. One process an engine, on core 0 for one thread and cores 0 and 1 for two;
only one computes at a time, and each turn starts with an untimed run because the caches were another engine's. Thread pools spin between runs as in production; the next engine's turn
begins when they have gone to sleep, and the table names every engine that used the processor while it wasn't its turn. Ratios are npas over the best engine of the same rounds.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peers import networks
from benchmarks.peers.catalog import ENGINES, ENVIRONMENTS, Engine, Environment
from benchmarks.peers.client import Worker, convert
from benchmarks.peers.contest import Entry, contest
from benchmarks.peers.environments import Unavailable, cache_folder, interpreter
from benchmarks.peers.job import Job
from benchmarks.peers.table import Report

SEED = 0
STARTED = time.monotonic()
T = TypeVar("T")


def main() -> int:
    """Install, convert, time, write."""
    options = parse()
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    logs = cache / "logs"
    logs.mkdir(exist_ok=True)
    for old in logs.glob("*.log"):
        old.unlink()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers are ended on the way out
    pythons: dict[str, Path | str] = {"": Path(sys.executable)}
    for name, environment in used(options.engines).items():
        say(f"environment: {name}")
        pythons[name] = attempt(partial(interpreter, name, environment, cache, logs / "install.log"))
    to_onnx = partial(finish, pythons["onnx"], logs)
    report = Report(machine(options), options.engines, networks.NETWORKS)
    for network in options.models:
        say(f"{network}: exporting")
        source = attempt(partial(networks.source, network, SEED, cache / "models", to_onnx))
        for threads in options.threads:
            with tempfile.TemporaryDirectory(prefix="npas-engines-") as scratch:
                report.add(threads, network, *race(network, threads, source, Path(scratch), pythons, logs, options))
            (options.out / "engines.json").write_text(report.json())
            (options.out / "engines.md").write_text(report.markdown())
    say(f"Written to {options.out}; what installers, converters and engines said is in {logs}.\n")
    print(report.markdown())
    return 0


def race(
    network: str, threads: int, source: Path | str, scratch: Path, pythons: dict[str, Path | str], logs: Path, options: argparse.Namespace
) -> tuple[dict[str, Entry], float]:
    """Prepare every engine and time those that are ready; the results of all, and the cores that other processes used meanwhile."""
    entries: dict[str, Entry] = {}
    starts: dict[str, Callable[[], Worker]] = {}
    for engine in options.engines:
        say(f"{network}, threads {threads}: preparing {engine.name}")
        ready = attempt(partial(prepare, engine, network, threads, source, scratch, pythons, logs))
        if isinstance(ready, str):
            entries[engine.name] = Entry(engine.name, failed=ready)
        else:
            starts[engine.name] = ready
    timed, others = contest(starts, options.rounds, options.runs, lambda text: say(f"{network}, threads {threads}: {text}"))
    return entries | timed, others


def finish(python: Path | str, logs: Path, folder: Path) -> None:
    """Add network.onnx to a new source folder. Raises Unavailable."""
    if isinstance(python, str):
        raise Unavailable(python)
    convert(str(python), Job("onnx_export", "", SEED, str(folder), str(folder)), logs / "onnx.log")


def prepare(engine: Engine, network: str, threads: int, source: Path | str, scratch: Path, pythons: dict[str, Path | str], logs: Path) -> Callable[[], Worker]:
    """Convert the network for ``engine`` unless that was done before; returns what starts its worker. Raises Unavailable."""
    python = pythons[engine.environment]
    for needed in (python, source):
        if isinstance(needed, str):
            raise Unavailable(needed)
    assert isinstance(source, Path)
    folder = scratch / engine.name if engine.fresh or not engine.converts else source.parent / engine.name
    job = Job(engine.adapter, network, SEED, str(source), str(folder), threads, networks.NETWORKS[network] if engine.pruned else 1.0)
    log = logs / f"{engine.name}.log"
    if engine.converts and not folder.is_dir():
        temporary = Path(tempfile.mkdtemp(prefix=f".{engine.name}-", dir=folder.parent))
        try:
            convert(str(python), Job(**{**vars(job), "model": str(temporary)}), log)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return partial(Worker, str(python), job, ",".join(str(core) for core in cores), log)


def attempt(action: Callable[[], T]) -> T | str:
    """The action's result, or why it is unavailable."""
    try:
        return action()
    except Unavailable as reason:
        return str(reason)


def used(engines: list[Engine]) -> dict[str, Environment]:
    """The environments that these engines need, in the table's order; npas's own needs no installation."""
    wanted = {"onnx", *(engine.environment for engine in engines)}
    return {name: environment for name, environment in ENVIRONMENTS.items() if name in wanted}


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "rounds": options.rounds,
        "runs": options.runs,
        "seed": SEED,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """The processor's name and its vector extensions."""
    text = Path("/proc/cpuinfo").read_text()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    vectors = next((label for flag, label in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in fields.get("flags", "").split()), "")
    return " ".join(part for part in (fields.get("model name", platform.processor()), vectors) if part)


def say(text: str) -> None:
    """Progress, on one line of a terminal and on lines of their own in a log."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text and not text.rpartition(": ")[2].startswith("round"):
        print(f"{time.monotonic() - STARTED:6.0f} s  {text}", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """The options, names checked."""
    names = [engine.name for engine in ENGINES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(networks.NETWORKS), help="networks, comma-separated")
    parser.add_argument("--engines", default=",".join(names), help=f"comma-separated from {', '.join(names)}")
    parser.add_argument("--peers-only", action="store_true", help="leave npas out")
    parser.add_argument("--threads", default="1,2", help="thread counts, comma-separated")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--runs", type=int, default=3, help="timed runs of an engine in each round")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent / "results", help="folder for engines.json and engines.md (default: benchmarks/results)"
    )
    options = parser.parse_args()
    for given, known in ((options.models, networks.NETWORKS), (options.engines, names)):
        unknown = set(given.split(",")) - set(known)
        if unknown:
            parser.error(f"no such name: {', '.join(sorted(unknown))}. There are {', '.join(known)}.")
    options.models = options.models.split(",")
    chosen = options.engines.split(",")
    options.engines = [engine for engine in ENGINES if engine.name in chosen and (engine.is_peer or not options.peers_only)]
    options.threads = [int(count) for count in options.threads.split(",")]
    if max(options.threads) > (os.cpu_count() or 1) or min(options.threads) < 1:
        parser.error(f"--threads: this machine has {os.cpu_count()} cores.")
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # what was finished is written
