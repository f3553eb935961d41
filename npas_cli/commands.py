"""What each command is for, reads and writes: the text of --help, checked against dvc.yaml by a test. Imports nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One stage as a person sees it. ``section`` names at once its section of params.yaml, its artifact folder and, with dashes, the command."""

    section: str
    about: str
    details: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    example: str
    module: str = ""
    measures: bool = False

    @property
    def name(self) -> str:
        """The word to type: ``search-scheme``."""
        return self.section.replace("_", "-")

    def written(self, target: str, backend: str = "cpu") -> tuple[str, ...]:
        """``writes`` when it is compiled for ``target``: of 64-bit ARM an executable instead of libraries, for OpenCL a folder for each network."""
        if self.section != "compile" or (target, backend) == ("host", "cpu"):
            return self.writes
        if backend == "opencl":
            return tuple(f"compile/{target}-opencl/{file}" for file in ("model", "dense", "original", "manifest.json", "metrics.json"))
        return tuple(f"compile/{target}/{file}" for file in ("runner", "manifest.json", "metrics.json"))

    @property
    def entry(self) -> str:
        """The module whose ``run(config, progress, overrides)`` does the work."""
        return self.module or f"stages.{self.section}"

    @property
    def help(self) -> str:
        """The text above the flags of ``npas <command> --help``; its first line is the summary in ``npas --help``."""
        files = [f"Reads:   {', '.join(self.reads) or 'nothing'}", f"Writes:  {', '.join(self.writes)}", f"Example: {self.example}"]
        return "\n\n".join([self.about, self.details, "\n".join(files)])


COMMANDS = (
    Command(
        "probe",
        "Identify the device whose latency counts.",
        "The identity holds no temperatures or times, so on the same device the file never changes and the pipeline measures nothing twice.",
        (),
        ("probe/device.json",),
        "npas probe --device host",
    ),
    Command(
        "pretrain",
        "Train the dense network to start from.",
        "With task.weights set, the given state_dict is evaluated and copied instead. An interrupted training goes on from its last epoch.",
        (),
        ("pretrain/model.pt", "pretrain/metrics.json", "pretrain/history.csv"),
        "npas pretrain --epochs 30 -S task.data=digits",
    ),
    Command(
        "replace_ops",
        "Phase 1: replace operators that mobile hardware computes slowly.",
        "Exponential activations and SE gates become their hard versions, found in the traced graph; one fine-tuning wins the accuracy back.",
        ("probe/device.json", "pretrain/model.pt"),
        ("replace_ops/model.pt", "replace_ops/graph.json", "replace_ops/metrics.json", "replace_ops/history.csv"),
        "npas replace-ops --epochs 5",
        measures=True,
    ),
    Command(
        "search_scheme",
        "Phase 2: choose each layer's filter type, pruning scheme and rate under a latency budget.",
        "Each trial prunes one-shot, retrains briefly and measures the compiled network on the device that 'npas probe' has identified: this machine, a phone (--device adb) or several of one "
        "model (--device adb:A,adb:B), which share the queue. Training goes on while a phone is lost or hot. Stop it at any time: the same command goes on "
        "where it was, and more --trials continue a finished search. Exit 3 tells the best reachable latency when no candidate meets the budget.",
        ("probe/device.json", "replace_ops/model.pt"),
        ("search_scheme/scheme.json", "search_scheme/network.pt", "search_scheme/trials.json", "search_scheme/metrics.json", "search_scheme/history.csv"),
        "npas search-scheme --budget-ms 6.7 --trials 100",
        measures=True,
    ),
    Command(
        "search_pruner",
        "Phase 3: find the algorithm that prunes best to the scheme, and run it to the end.",
        "Every algorithm, with and without distillation from the dense network, at every learning rate, races for a few epochs; the best go on for longer (successive halving), "
        "and the winner trains to the end. Stop it at any time: the same command goes on where it was, and what is added to the race races alone.",
        ("replace_ops/model.pt", "search_scheme/network.pt", "search_scheme/scheme.json"),
        ("search_pruner/weights.pt", "search_pruner/race.json", "search_pruner/metrics.json", "search_pruner/race.csv", "search_pruner/history.csv"),
        "npas search-pruner --algorithms magnitude,admm --epochs 20",
    ),
    Command(
        "compile",
        "Compile the pruned network, the dense and the original one for the device.",
        "A library with a plain C interface and the weights inside, checked against PyTorch on random input before it is saved (exit 10 if it differs). "
        "For android-arm64 and linux-arm64: compile/<target>/runner, a static executable that needs nothing on the device. "
        "--backend opencl: kernels for a phone's GPU in compile/<target>-opencl/, checked on this machine's OpenCL device where it has one.",
        ("probe/device.json", "pretrain/model.pt", "replace_ops/model.pt", "search_scheme/network.pt", "search_scheme/scheme.json", "search_pruner/weights.pt"),
        ("compile/host/model.so", "compile/host/dense.so", "compile/host/original.so", "compile/host/manifest.json", "compile/host/metrics.json"),
        "npas compile --target host",
    ),
    Command(
        "bench",
        "Measure the compiled networks on the device, dense beside pruned.",
        "Pinned threads, warm-up, interleaved rounds, medians with intervals. Phones are reached over adb; what isn't compiled for them yet is compiled now. "
        "Exit 4, 5: no phone, or it doesn't trust this computer; 6: lost (the same command goes on); 7: it is full; 8: the runner died; 9: measured but not to be trusted; "
        "10: wrong output; 11: above --fail-above, or slower than --baseline.",
        ("probe/device.json", "pretrain/model.pt", "replace_ops/model.pt", "search_scheme/scheme.json", "search_pruner/weights.pt",
         "compile/host/model.so", "compile/host/dense.so", "compile/host/original.so", "compile/host/manifest.json"),
        ("bench/latency.json", "bench/metrics.json", "bench/layers.csv"),
        "npas bench --runs 200 --fail-above 6.7",
        measures=True,
    ),
    Command(
        "export",
        "Write the pruned network in formats that other tools read.",
        "safetensors holds the masked weights; ONNX, with the extra npas[onnx], the whole network for any batch size. Both have dense shapes with exact zeros, so other tools run them at dense "
        "speed; both tell the scheme, the replaced operators and the accuracy in their metadata.",
        ("search_scheme/scheme.json", "search_pruner/weights.pt"),
        ("export",),
        "npas export --format safetensors,onnx",
    ),
    Command(
        "report",
        "Write report.html, one self-contained page about the whole run, and print its table.",
        "Pareto plot with the budget line, search history, the scheme of each layer, per-layer milliseconds dense against sparse. Needs no network to open.",
        ("pretrain/metrics.json", "replace_ops/graph.json", "replace_ops/metrics.json", "search_scheme/scheme.json", "search_scheme/trials.json", "search_scheme/metrics.json",
         "search_pruner/race.json", "compile/host/manifest.json", "bench/latency.json"),
        ("report.html",),
        "npas report --json",
        module="npas_cli.report",
    ),
)  # fmt: skip

BESIDE = (  # commands with a section that aren't stages of dvc.yaml
    Command(
        "lifelong",
        "Learn several tasks, one after the other, in one network, none of them at an earlier one's expense.",
        "Each takes a part of the weights for itself, found by ADMM and frozen from then on, and a learnt mask says which of the earlier tasks' frozen ones it uses; batch norms, biases and the "
        "head are its own. Data of earlier tasks aren't needed again. It writes lifelong/<name>.so for each task of --compile. Stop it at any time: the same command goes on where it was.",
        (),
        ("lifelong/network.pt", "lifelong/tasks.json"),
        "npas lifelong --name flowers --data flowers --compile flowers",
        module="stages.learn_task",
    ),
)
