"""The configuration: one frozen dataclass per section of params.yaml (stages/params.py reads it). Imports nothing of npas.

A field is at once a key of params.yaml, a flag of the subcommand of the same name and a line of --help, so its help text stands here and nowhere else.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

TARGETS = ("host", "android-arm64", "linux-arm64")  # what npas compile makes code for; each has its folder compile/<target>/


def tunable(default: Any, help: str, *, choices: tuple[str, ...] = (), low: float | None = None, high: float | None = None, duration: bool = False, flag: str = "", count_or: str = "") -> Any:
    """A dataclass field with what the loader and --help need.

    ``low`` and ``high`` are inclusive bounds, for every element when the field is a list. ``duration`` marks a "how long" field (trials, epochs):
    it is left out of the key of the resumable state, so that raising it continues a run instead of starting anew; so are fields that change no result (workers).
    ``flag`` is a shorter flag beside the one made of the name.
    ``count_or``: the text is a whole number from 1 on, or this word.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high, "duration": duration, "flag": flag, "count_or": count_or})


@dataclass(frozen=True)
class Task:
    """What is being compressed: a network, its data and how to train it."""

    task: str = tunable("classification", "what the network does: classification, or package.module:Class of your own Task")
    model: str = tunable("npas_net", "zoo name (npas_net), torchvision name (mobilenet_v2), or package.module:callable that returns an nn.Module")
    weights: str | None = tunable(None, "file with the trained state_dict; null: npas pretrain trains the network")
    data: str = tunable("digits", "digits (embedded), a folder with train/ and val/ (one subfolder a class), or package.module:callable")
    image_size: int = tunable(32, "height and width that images are resized to, in pixels", low=8, high=1024)
    batch_size: int = tunable(64, "images per training step", low=1)
    train_limit: int = tunable(0, "use only this many training images (0: all)", low=0)
    augment: str = tunable("affine", "what is done to training images: affine (small shifts, turns and zooms), crop (shifts by up to an eighth, the custom for CIFAR), none; mirrored where the data allow", choices=("affine", "crop", "none"))
    train_device: str = tunable("auto", "where training runs; latency is never measured there", choices=("auto", "cpu", "cuda"))
    precision: str = tunable("float32", "arithmetic of training steps; bfloat16 is about twice as fast on processors that have it; evaluation is always float32", choices=("float32", "bfloat16"))
    threads: int = tunable(0, "CPU threads for training (0: all cores)", low=0)
    seed: int = tunable(0, "seed of initial weights, shuffling and data split", low=0)


@dataclass(frozen=True)
class Probe:
    """The device whose latency counts."""

    device: str = tunable("host", "device to measure on: host (this machine), adb (the only phone), adb:SERIAL or adb:HOST:PORT")
    hosts: tuple[str, ...] = tunable((), "phones on the network that npas devices and --device adb look for, e.g. [192.168.1.5:5555]; those on USB are found")


@dataclass(frozen=True)
class Pretrain:
    """Train the dense starting point (skipped when task.weights is given)."""

    epochs: int = tunable(16, "passes over the training images", low=0, duration=True)
    lr: float = tunable(0.004, "peak learning rate (AdamW, one-cycle cosine)", low=0)
    weight_decay: float = tunable(0.02, "AdamW weight decay", low=0)
    label_smoothing: float = tunable(0.1, "label smoothing of the cross-entropy", low=0, high=1)


@dataclass(frozen=True)
class ReplaceOps:
    """Phase 1: replace operators that mobile hardware computes slowly, then fine-tune once (NPAS, section 5.1)."""

    epochs: int = tunable(5, "fine-tuning epochs for the whole replacement (paper: 5)", low=0, duration=True)
    lr: float = tunable(0.001, "peak learning rate of the fine-tuning", low=0)
    weight_decay: float = tunable(0.02, "AdamW weight decay", low=0)
    distill: float = tunable(0.5, "weight of the distillation loss from the original network (0: none)", low=0, high=1)


@dataclass(frozen=True)
class SearchScheme:
    """Phase 2: choose a pruning scheme and rate for every layer under the latency budget (NPAS, section 5.2)."""

    budget_ms: float | None = tunable(None, "latency budget in milliseconds on the device; wins over budget_ratio", low=0)
    budget_ratio: float = tunable(0.5, "latency budget as a fraction of the dense latency, when budget_ms is null", low=0, high=1)
    strategy: str = tunable(
        "npas",
        "who proposes: npas (Q-learning + Gaussian-process screen), ql (Q-learning alone), bo (screen over a random pool), random, evolution, anneal, rnn (REINFORCE), ilp (integer program), uniform (one rate for all layers), global-magnitude (one threshold for all weights)",
        choices=("npas", "ql", "bo", "random", "evolution", "anneal", "rnn", "ilp", "uniform", "global-magnitude"),
    )
    trials: int = tunable(24, "candidates to train and measure", low=1, duration=True)
    schemes: tuple[str, ...] = tunable(
        ("none", "filter", "block-punched", "pattern"), "pruning schemes to choose from", choices=("none", "filter", "block-punched", "pattern")
    )
    rates: tuple[float, ...] = tunable((2.0, 2.5, 3.0, 5.0, 7.0, 10.0), "pruning rates to choose from (3 keeps one weight in three); none is rate 1", low=1)
    blocks: tuple[int, ...] = tunable((8, 16, 32), "filters that share their kept positions in block-punched and pattern layers", low=1, high=64)
    channel_blocks: tuple[int, ...] = tunable((1,), "input channels whose weights are pruned together in block-punched layers (YOLObile: 4)", low=1, high=64)
    min_share: float = tunable(0.005, "layers with a smaller share of the network's multiply-accumulates stay dense", low=0, high=1)
    margin: float = tunable(0.05, "a candidate slower than the budget by more than this share is not trained", low=0)
    slow_trials: float = tunable(2.0, "candidates that are only measured, being that slow, don't count as trials: up to this many times trials", low=0, duration=True)
    epochs: float = tunable(2.0, "retraining epochs of each candidate (paper: 2)", low=0)
    lr: float = tunable(0.002, "peak learning rate of that retraining", low=0)
    pool: int = tunable(100, "proposals that the Gaussian process screens in each round", low=1)
    batch: int = tunable(3, "candidates evaluated before the agent and the screen learn again", low=1)
    initial: int = tunable(6, "candidates evaluated before the screen starts", low=1)
    alpha: float = tunable(2.0, "reward = accuracy - alpha * max(0, latency - budget) / budget", low=0)
    q_lr: float = tunable(0.01, "Q-learning rate (metaQNN: 0.01)", low=0, high=1)
    q_gamma: float = tunable(1.0, "Q-learning discount (metaQNN: 1.0)", low=0, high=1)
    q_initial: float = tunable(0.5, "initial Q value (metaQNN: 0.5)")
    q_replay: int = tunable(128, "trajectories replayed after each round (metaQNN: 128)", low=0)
    q_explore: float = tunable(0.55, "share of the trials with epsilon 1.0; then it falls to 0.1 in equal steps (metaQNN: 0.55)", low=0, high=1)
    wl_depth: int = tunable(3, "most Weisfeiler-Lehman rounds; the depth in 1..wl_depth is chosen by marginal likelihood", low=1, high=5)
    train_limit: int = tunable(0, "training images for the fast evaluation (0: all); fewer are faster and tell candidates apart less well", low=0)
    train_threads: int = tunable(1, "CPU threads for training candidates; the other cores measure", low=1)
    runs: int = tunable(30, "timed runs per candidate, each beside the dense reference", low=3)
    seed: int = tunable(0, "seed of the search", low=0)
    warm_start: str = tunable("none", "npas, bo: ilp takes the first trials (initial) from the integer program on the estimates that the space brings (Space.costs)", choices=("none", "ilp"))
    screen_neighbours: float = tunable(0.5, "npas, bo: share of the pool that are variations of good trials", low=0, high=1)
    screen_parents: int = tunable(5, "npas, bo: good trials that are varied; half as many that just miss the budget join them", low=1)
    screen_steps: float = tunable(0.75, "npas, bo: share of a variation's changes that are small steps, not draws from all choices", low=0, high=1)
    screen_xi: float = tunable(0.0, "npas, bo: expected improvement counts beyond this many standard deviations (NAS-BOWL: 0)", low=0)
    screen_noise: float = tunable(0.01, "npas, bo: most noise variance of standardised targets (NAS-BOWL: 0.01)", low=0.00001)
    q_steps: int = tunable(9, "Q-learning: equal steps in which epsilon falls (metaQNN: 9)", low=1)
    q_end: float = tunable(0.1, "Q-learning: epsilon at the end (metaQNN: 0.1)", low=0, high=1)
    evolution_population: int = tunable(20, "evolution: the youngest trials, which may have offspring (Real et al.: 100 of 20,000 trials)", low=1)
    evolution_sample: int = tunable(5, "evolution: members drawn, of which the best is mutated (Real et al.: 25)", low=1)
    anneal_start: float = tunable(100.0, "anneal: temperature at the start, at which a loss of one standard deviation is accepted with probability 1/e (NNI: 100)", low=0.001)
    anneal_stop: float = tunable(20.0, "anneal: temperature at the end (NNI: 20)", low=0.001)
    anneal_rate: float = tunable(0.9, "anneal: factor of one step of the temperature (NNI: 0.9)", low=0.001, high=1)
    anneal_perturb: float = tunable(0.35, "anneal: share of the layers that a step changes at the start (NNI: 0.35)", low=0, high=1)
    rnn_hidden: int = tunable(32, "rnn: units of the LSTM controller", low=1)
    rnn_lr: float = tunable(0.02, "rnn: learning rate of the controller (Adam)", low=0)
    rnn_baseline: float = tunable(0.8, "rnn: share of the moving baseline that outlives a trial", low=0, high=1)
    rnn_entropy: float = tunable(0.01, "rnn: weight of the policy's entropy, which keeps it from settling early", low=0)
    ilp_learn: float = tunable(0.3, "ilp: share of the trials that teach the models when the space brings no estimates", low=0, high=1)
    filter_types: tuple[str, ...] = tunable(
        ("keep", "1x1", "3x3", "3x3dw-1x1", "1x1-3x3dw-1x1", "skip"),
        "what a convolution may become where shapes allow; without keep, every layer that can be replaced is",
        choices=("keep", "1x1", "3x3", "3x3dw-1x1", "1x1-3x3dw-1x1", "skip"),
    )
    calibration: int = tunable(256, "training images from which new filter types learn the feature maps that they replace (a quarter of them to judge the result), and pruned layers theirs", low=4)
    sweeps: int = tunable(4, "rounds of alternating least squares for the new separable filter types", low=0)
    early_stop: bool = tunable(True, "end a candidate's training when its learning curve says that it stays below the best")
    early_stop_confidence: float = tunable(0.95, "how sure that must be (Baker et al. 2018: 0.95 to 0.99)", low=0.5, high=1)
    workers: str = tunable("1", "processes that train candidates: a number, or ray (the cluster at $RAY_ADDRESS); batch is how many of them are kept busy", count_or="ray", duration=True)
    distill: float = tunable(0.0, "weight of the distillation from the dense network in that retraining: costs a third of its time, helps where labelled images are few", low=0, high=1)
    ablate: bool = tunable(True, "at the end, measure what each layer of the winner costs and saves", duration=True)
    patience_minutes: float = tunable(30.0, "how long training goes on without a phone that can measure (lost, hot, in use) before the search stops, to be continued", low=0, duration=True)
    compensate: bool = tunable(True, "fit what stays of each pruned layer to the layer's outputs on the calibration images, before any training: more accurate; costs a candidate 0.3 s (ResNet-20) to 20 s (ResNet-50)")
    grouping: bool = tunable(True, "reorder each candidate's channels so that filters that prune well together share blocks: more accurate at the same shapes; costs a candidate 0.2 s (ResNet-20) to 10 s (ResNet-50)")


PRUNERS = ("magnitude", "least-squares", "gradual", "admm", "group-lasso", "geometric-median", "taylor", "dynamic-pattern", "dais", "global-scale")


@dataclass(frozen=True)
class SearchPruner:
    """Phase 3: find the algorithm that prunes best to the chosen scheme, and run it to the end (NPAS, section 5.3)."""

    algorithms: tuple[str, ...] = tunable(("least-squares", "gradual", "admm"), "algorithms in the race", choices=PRUNERS, duration=True)
    distill: str = tunable("both", "race with and without distillation from the dense network: both, yes, no", choices=("both", "yes", "no"), duration=True)
    race_epochs: float = tunable(1.0, "epochs of each entry in the first rung of the race", low=0.01, duration=True)
    epochs: int = tunable(12, "epochs of the winner, from the dense weights to the end", low=1, duration=True)
    prune_share: float = tunable(0.5, "share of the epochs in which an algorithm reaches the scheme (magnitude: at once); the rest retrains what stays", low=0, high=1)
    lr: float = tunable(0.003, "peak learning rate (AdamW, one-cycle cosine)", low=0)
    weight_decay: float = tunable(0.02, "AdamW weight decay", low=0)
    distill_weight: float = tunable(0.7, "weight of the distillation loss", low=0, high=1)
    temperature: float = tunable(3.0, "softmax temperature of the distillation (Hinton et al. 2015)", low=0.1)
    admm_rho: float = tunable(0.0001, "ADMM penalty at the start (YOLObile: 1e-4)", low=0)
    admm_stages: int = tunable(4, "values of rho, each ten times the last (YOLObile: 4)", low=1)
    lasso_strength: float = tunable(1.0, "group lasso of group-lasso (2 would take units at the scheme's boundary to 0 over the ramp) and dynamic-pattern (1 would)", low=0)
    purify: bool = tunable(True, "remove what pruning has left without effect: filters that nothing reads any more, weights that read channels which are gone")
    dais_lr: float = tunable(0.05, "step of DAIS' indicators, whose standard deviation is about 1", low=0)
    seed: int = tunable(0, "seed of shuffling", low=0)
    race_eta: int = tunable(3, "the best one in so many entries goes on to the next rung, with so many times the epochs (Hyperband: 3)", low=2, duration=True)
    race_budget: float = tunable(0.0, "epochs that the race may spend on all entries together: rungs beyond it are left out (0: no limit)", low=0, duration=True)
    learning_rates: tuple[float, ...] = tunable((), "peak learning rates that race against each other; empty: lr alone", low=0, duration=True)
    workers: str = tunable("1", "entries of the race that run side by side in processes of their own (a number), or ray: on a Ray cluster", duration=True, count_or="ray")
    feature_weight: float = tunable(0.0, "weight of aligning features with the dense network's, in entries with distillation (CAT's kernel alignment; 0: outputs only)", low=0)
    label_smoothing: float = tunable(0.0, "label smoothing of the cross-entropy", low=0, high=1)
    schedule: str = tunable("one-cycle", "learning rate by step: one-cycle (cosine up, then down), cosine (down only), constant", choices=("one-cycle", "cosine", "constant"))
    ema: float = tunable(0.0, "the result is the average of the weights over about this share of the steps (0: the last weights)", low=0, high=1)
    recalibrate: bool = tunable(True, "estimate the batch norms' statistics anew at the end")


@dataclass(frozen=True)
class Compile:
    """Compile the pruned network for the device."""

    target: str = tunable("host", "host (this machine), or a 64-bit ARM device: a static executable", choices=TARGETS)
    targets: tuple[str, ...] = tunable((), "further targets that the pipeline (dvc repro) compiles for", choices=TARGETS[1:])
    mcpu: str | None = tunable(None, "ARM processor to order instructions for, e.g. cortex-a55; null: generic")
    threads: int = tunable(1, "threads that the compiled network runs on", low=1, high=64)
    tolerance: float = tunable(0.001, "largest error against PyTorch, relative to the largest output", low=0)
    tune_minutes: float = tunable(0.0, "minutes to spend on measuring which layouts and tiles are the fastest here, before compiling; what was found stays in the user's cache", low=0, duration=True, flag="--tune")
    backend: str = tunable("cpu", "cpu, or opencl: kernels for a phone's GPU, in compile/<target>-opencl/ (dvc repro and npas bench take cpu)", choices=("cpu", "opencl"))
    precision: str = tunable("float32", "numbers in the GPU's memory: float32, or float16 (half the size; sums stay float32); the cpu's are float32", choices=("float32", "float16"))


@dataclass(frozen=True)
class Bench:
    """Measure the compiled network on the device, dense beside pruned."""

    runs: int = tunable(100, "timed runs of each network, interleaved (paper: 100)", low=10)
    warmup: int = tunable(10, "untimed runs before them (at least, and one second)", low=0)
    cpus: tuple[int, ...] = tunable((), "cores to pin to, e.g. [0]; empty: the last core that this process may use", low=0)
    fail_above: float | None = tunable(None, "exit 11 when the median is above this many milliseconds", low=0)
    session: int = tunable(1, "raise it to measure again in an unchanged pipeline", low=0)
    devices: tuple[str, ...] = tunable(
        (), "where to measure, one after the other: host, adb (the only phone), adb:SERIAL, adb:HOST:PORT; empty: probe.device", flag="--device"
    )
    cluster: str = tunable("", "cores to pin to by kind: big, little, or a mask such as 0xf0; empty: bench.cpus, or the last core here and a big one on a phone")
    threads: int | None = tunable(None, "threads to run on, at most compile.threads; null: that many", low=1)
    cool_minutes: float = tunable(5.0, "longest wait for a hot phone to cool before it is measured", low=0)
    baseline: str | None = tunable(None, "an earlier bench/latency.json: exit 11 when the pruned network has become slower relative to the dense one since")
    margin: float = tunable(0.02, "slower than the baseline means: the whole 95 % interval of the change lies beyond this share", low=0)
    junit: str | None = tunable(None, "file for a JUnit report of the checks, as CI systems show it")


@dataclass(frozen=True)
class Export:
    """Write the pruned network in formats that other tools read."""

    formats: tuple[str, ...] = tunable(("safetensors",), "safetensors (weights), onnx (the whole network; needs npas[onnx])", choices=("safetensors", "onnx"), flag="--format")


@dataclass(frozen=True)
class Lifelong:
    """Several tasks in turn in one network, none of which loses by the later ones (LPS, Wang et al. 2020); not part of dvc repro."""

    name: str = tunable("", "the task to learn: a name of letters, digits, - and _")
    data: str | None = tunable(None, "its data, as task.data; null: task.data")
    compile: tuple[str, ...] = tunable((), "learnt tasks whose networks to compile for this machine, each as lifelong/<name>.so", duration=True)
    tasks: int = tunable(3, "tasks that the network is to hold; those to come share what is free equally", low=1)
    share: float | None = tunable(None, "share of the weights that this task takes for itself; null: an equal part of what is free", low=0.001, high=1)
    reuse: float = tunable(0.9, "share of the earlier tasks' weights that its learnt mask lets it use (LPS: 0.9; 0: none); fewer are faster", low=0, high=1)
    block: int = tunable(8, "filters that share their positions in every layer; the first task decides", low=1, high=64)
    learn_epochs: int = tunable(8, "epochs in which all free weights learn the task", low=0, duration=True)
    epochs: int = tunable(12, "epochs of pruning to the task's part and learning its mask (ADMM), and of retraining", low=1, duration=True)
    prune_share: float = tunable(0.5, "share of those epochs until the part is settled; the rest retrains it", low=0, high=1)
    lr: float = tunable(0.004, "peak learning rate (AdamW, one-cycle cosine)", low=0)
    weight_decay: float = tunable(0.02, "AdamW weight decay", low=0)
    admm_rho: float = tunable(0.0001, "ADMM penalty at the start", low=0)
    admm_stages: int = tunable(4, "values of rho, each ten times the last", low=1)
    gate_lr: float = tunable(0.02, "step of the sharing mask, whose gates lie between 0 and 1", low=0)
    seed: int = tunable(0, "seed of shuffling", low=0)


@dataclass(frozen=True)
class Report:
    """Write one self-contained HTML page about the whole run."""

    title: str = tunable("npas", "title of the page")


@dataclass(frozen=True)
class Config:
    """Every section of params.yaml."""

    task: Task = Task()
    probe: Probe = Probe()
    pretrain: Pretrain = Pretrain()
    replace_ops: ReplaceOps = ReplaceOps()
    search_scheme: SearchScheme = SearchScheme()
    search_pruner: SearchPruner = SearchPruner()
    compile: Compile = Compile()
    bench: Bench = Bench()
    export: Export = Export()
    report: Report = Report()
    lifelong: Lifelong = Lifelong()


SECTIONS: dict[str, type] = {f.name: type(f.default) for f in dataclasses.fields(Config)}


def fields(section: str) -> dict[str, dataclasses.Field]:
    """The fields of a section by name, in the order of params.yaml."""
    return {f.name: f for f in dataclasses.fields(SECTIONS[section])}
