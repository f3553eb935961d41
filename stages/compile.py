"""npas compile: the pruned network, and beside it the dense and the original one, for the device. Reads the checkpoints and the scheme; writes compile/<target>/.

For this machine these are shared libraries; for 64-bit ARM one static executable, "runner", that holds all three and times them in turns, and libraries too where the NDK is at hand.
With the backend opencl a folder for each, compile/<target>-opencl/model and so on, and one runner for all (stages/compiler/opencl).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.artifacts import load_checkpoint, plain, read_json, sha256, write_json
from stages.config import Config
from stages.errors import ArtifactError, UsageError
from stages.progress import Progress, bar

if TYPE_CHECKING:
    from torch import nn

    from stages.schemes import Scheme
    from stages.tasks import Task

    Networks = Mapping[str, tuple[nn.Module, Scheme | None]]

NETWORKS = ("model", "dense", "original")
READS = ("pretrain/model.pt", "replace_ops/model.pt", "search_scheme/network.pt", "search_scheme/scheme.json", "search_pruner/weights.pt")


def run(config: Config, progress: Progress, overrides: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Compile and check all three networks, save libraries or executable, manifest and metrics; returns the metrics. WrongOutput when one doesn't compute what PyTorch computes."""
    from stages.graph import trace
    from stages.schemes import Scheme, resolve
    from stages.tasks import load_network, make_task

    task = make_task(config.task)
    scheme, pruned = Scheme.from_json(read_json("search_scheme/scheme.json")), _pruned(task)
    networks = {
        "model": (pruned, resolve(scheme, trace(pruned, task.example()))),
        "dense": (load_network("replace_ops/model.pt", task), None),
        "original": (load_network("pretrain/model.pt", task), None),
    }
    c = config.compile
    if c.precision != "float32" and c.backend == "cpu":
        raise UsageError(f"The cpu backend computes in float32, not in {c.precision}.", "Compile with --backend opencl, or leave --precision out.")
    folder, manifest, metrics = _for_gpu(config, networks, task, progress) if c.backend == "opencl" else _for_cpu(config, networks, task, progress)
    for note in manifest["notes"]:
        progress.say(note)
    record = {"config": {"compile": plain(c)}} | ({"overrides": plain(overrides)} if overrides else {})
    write_json(folder / "manifest.json", manifest | {"made_from": _made_from()} | record)
    write_json(folder / "metrics.json", metrics | ({"overrides": plain(overrides)} if overrides else {}))
    return metrics


def _for_cpu(config: Config, networks: Networks, task: Task, progress: Progress) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """(folder, manifest of the pruned network, metrics) of libraries or of an executable."""
    from stages.compiler import toolchain
    from stages.compiler.api import compile_model
    from stages.compiler.target import CROSS
    from stages.compiler.tuning.networks import tune_networks
    from stages.compiler.tuning.request import Request

    c = config.compile
    folder, cross = Path("compile") / c.target, c.target in CROSS
    if cross:
        toolchain.prepare(toolchain.STATIC, progress.say)
    target = f"{c.target}:{c.mcpu}" if c.mcpu else c.target
    if c.tune_minutes:
        found = tune_networks([Request(module, task.example(), pruning) for module, pruning in networks.values()], c.target, c.tune_minutes, progress)
        progress.say(f"tuned {len(found)} layouts and kinds of layers, {sum(verdict.gain > 1 for verdict in found)} of them got another one")
    made = {}
    with bar(progress, "compiling", len(networks)):
        for name, (module, pruning) in networks.items():
            made[name] = compile_model(module, task.example(), pruning, target, c.threads, tolerance=c.tolerance)
            if not cross:
                made[name].save(folder / f"{name}.so")
            progress.advance(f"{name}: {_outcome(made[name].manifest)}")
    counts = _save_cross(made, folder, progress) if cross else {}
    digest = {"runner_sha256": sha256(folder / "runner")} if cross else {"so_sha256": sha256(folder / "model.so")}
    return folder, made["model"].manifest | counts | digest, _metrics(made) | counts | {"macs_dense": made["dense"].manifest["macs"]}


def _for_gpu(config: Config, networks: Networks, task: Task, progress: Progress) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """(folder, manifest of the pruned network, metrics) of OpenCL kernels; where this machine has an OpenCL device, they ran on it, and the metrics tell how long."""
    from stages.compiler.opencl import model
    from stages.compiler.opencl.api import compile_opencl

    c = config.compile
    folder, made = Path("compile") / f"{c.target}-opencl", {}
    with bar(progress, "compiling", len(networks)):
        for name, (module, pruning) in networks.items():
            made[name] = compile_opencl(module, task.example(), pruning, c.target, c.precision, tolerance=c.tolerance)
            made[name].network.write(folder / name)
            progress.advance(f"{name}: {_outcome(made[name].manifest)}")
    if not model.save_runner(c.target, folder / "runner"):
        progress.say(f"Only the source of the phone's runner was written, {folder}/runner.c: ANDROID_NDK_HOME isn't set.")
    times = model.time(made) if made["model"].manifest["checked_on"] else {}
    if times:
        progress.say(model.describe(times))
    return folder, made["model"].manifest, _metrics(made) | {"macs_dense": made["dense"].manifest["macs"]} | ({"opencl": times} if times else {})


def _metrics(made: Mapping[str, Any]) -> dict[str, Any]:
    return {key: made["model"].manifest[key] for key in ("max_abs_err", "max_abs_output", "macs", "weights_bytes", "workspace_bytes")}


def is_current(config: Config) -> bool:
    """Whether compile/<target>/ holds whole files, made of the checkpoints that are there now and in the way that ``config`` asks for."""
    folder = Path("compile") / config.compile.target
    try:
        manifest = read_json(folder / "manifest.json")
        program = folder / ("model.so" if config.compile.target == "host" else "runner")
        whole = sha256(program) == manifest.get("so_sha256" if config.compile.target == "host" else "runner_sha256")
    except (ArtifactError, OSError):
        return False
    asked, made = plain(config.compile), manifest["config"]["compile"]
    return whole and manifest.get("made_from") == _made_from() and all(asked[key] == made.get(key) for key in ("mcpu", "threads"))


def _made_from() -> dict[str, str]:
    return {path: sha256(path) for path in READS if Path(path).exists()}


def _outcome(manifest: Mapping[str, Any]) -> str:
    error = manifest["max_abs_err"]
    return f"{manifest['macs'] / 1e6:.1f} million multiply-accumulates, " + ("not run" if error is None else f"largest error {error:.1e}")


def _save_cross(made: Mapping[str, Any], folder: Path, progress: Progress) -> dict[str, int]:
    """Write the executable, and the libraries where the NDK is; returns the instructions that an inference executes, where they can be counted."""
    from stages.compiler import count, cross, toolchain

    cross.write_runner(made, folder / "runner")
    if made["model"].target == "android-arm64" and toolchain.ndk():
        for name, model in made.items():
            model.save(folder / f"{name}.so")
    if not count.available():
        progress.say("Instructions were not counted: the package unicorn isn't installed. To have them counted: pip install 'npas[arm64]'.")
        return {}
    return {"insns_arm64": count.instructions(made["model"]), "insns_arm64_dense": count.instructions(made["dense"])}


def _pruned(task: Task) -> nn.Module:
    """The network that search-scheme chose with the weights of search-pruner. ArtifactError when they belong to another network."""
    from stages.tasks import load_network

    module = load_network("search_scheme/network.pt", task)
    try:
        module.load_state_dict(load_checkpoint("search_pruner/weights.pt")["state_dict"])
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"search_pruner/weights.pt doesn't fit search_scheme/network.pt: {reason}", "Run 'npas search-pruner' again.") from None
    return module
