"""fit: the schedule, distillation, masks, hooks, and resuming bit-exactly after a kill."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stages.config import Task as TaskConfig
from stages.errors import NpasError
from stages.progress import Silent
from stages.tasks import FitHooks, fit, make_task, recalibrate_bn
from stages.tasks.schedules import SCHEDULES, one_cycle
from stages.tasks.trainer import apply_masks_


@pytest.fixture(scope="module")
def task():
    return make_task(TaskConfig(model="npas_tiny", image_size=16, train_limit=160, batch_size=32, threads=1))


class Lines(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def advance(self, line: str = "") -> None:
        self.lines.append(line)


class Killed(BaseException):
    """Like kill -9: nothing catches it."""


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(torch.equal(x[k], y[k]) for k in x)


def test_training_learns_and_reports(task):
    module, progress = task.model(), Lines()
    rows = fit(module, task, epochs=6, lr=0.01, progress=progress)
    assert [r["epoch"] for r in rows] == [1, 2, 3, 4, 5, 6] and rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[-1]["accuracy"] == task.evaluate(module) > 0.4
    assert not module.training and progress.lines[2] == f"epoch 3/6  loss {rows[2]['loss']:.3f}  top1 {100 * rows[2]['accuracy']:.1f}"


def test_bfloat16_trains_alike_and_evaluates_in_float32(task):
    low = make_task(TaskConfig(model="npas_tiny", image_size=16, train_limit=160, batch_size=32, threads=1, precision="bfloat16"))
    a, b, again = task.model(), low.model(), low.model()
    exact, rough, same_rough = (fit(m, t, epochs=2, lr=0.01) for m, t in ((a, task), (b, low), (again, low)))
    assert rough == same_rough and same(b, again) and not same(a, b)
    assert all(p.dtype == torch.float32 for p in b.parameters()) and exact[-1]["loss"] == pytest.approx(rough[-1]["loss"], rel=0.1)
    assert low.evaluate(a) == task.evaluate(a)


def test_same_seed_same_weights_whatever_the_caller_draws(task):
    a, b, c = task.model(), task.model(), task.model()
    fit(a, task, epochs=1, lr=0.01, seed=3)
    torch.rand(7)
    before = torch.get_rng_state()
    fit(b, task, epochs=1, lr=0.01, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    fit(c, task, epochs=1, lr=0.01, seed=4)
    assert same(a, b) and not same(a, c)


def test_evaluate_is_the_share_of_right_answers(task):
    module = task.model().train()
    images, labels = task.data.splits["val"].images, task.data.splits["val"].labels
    normalised = (images - task.mean.view(1, 3, 1, 1)) / task.std.view(1, 3, 1, 1)
    with torch.no_grad():
        right = (copy.deepcopy(module).eval()(normalised).argmax(1) == labels).float().mean()
    assert task.evaluate(module) == pytest.approx(float(right), abs=1e-6)
    assert module.training  # as it was


@pytest.mark.parametrize(("moment", "more"), [("boundary", {}), ("mid-epoch", {}), ("mid-epoch", {"ema": 0.3, "align": 2.0, "features": ("stem", "blocks"), "schedule": "cosine"})])
def test_resumes_bit_exactly_after_a_kill(task, tmp_path, moment, more):
    class Accumulating(FitHooks):
        """Has state of its own that its loss depends on."""

        def __init__(self, module: nn.Module, kill_at: int = -1):
            self.weight, self.kill_at, self.steps = module.classifier.weight, kill_at, 0

        def loss_term(self) -> Tensor:
            return 1e-3 * self.steps * self.weight.square().sum()

        def after_step(self, step: int, total_steps: int) -> None:
            self.steps += 1
            assert total_steps == 15
            if step == self.kill_at and moment == "mid-epoch":
                raise Killed

        def after_epoch(self, epoch: int) -> None:
            if epoch * 5 > self.kill_at > 0 and moment == "boundary":
                raise Killed

        def state(self) -> dict[str, int]:
            return {"steps": self.steps}

        def load_state(self, state: dict[str, int]) -> None:
            self.steps = state["steps"]

    arguments = {"epochs": 3, "lr": 0.01, "weight_decay": 0.02, "label_smoothing": 0.1, "teacher": task.model(), "distill": 0.3, **more}
    undisturbed, killed, resumed = task.model(), task.model(), task.model()
    rows = fit(undisturbed, task, **arguments, hooks=Accumulating(undisturbed))
    path = tmp_path / "c.pt"
    with pytest.raises(Killed):
        fit(killed, task, **arguments, hooks=Accumulating(killed, kill_at=8), checkpoint=path)
    assert path.exists()
    progress = Lines()
    again = fit(resumed, task, **arguments, hooks=Accumulating(resumed), checkpoint=path, progress=progress)
    assert again == rows and same(resumed, undisturbed)
    assert progress.lines[0].endswith("(earlier run)") and len(progress.lines) == 3


def test_a_finished_checkpoint_is_not_trained_again(task, tmp_path):
    first, second = task.model(), task.model()
    rows = fit(first, task, epochs=1, lr=0.01, checkpoint=tmp_path / "c.pt")
    assert fit(second, task, epochs=1, lr=0.01, checkpoint=tmp_path / "c.pt") == rows and same(first, second)


def test_a_checkpoint_of_other_settings_is_not_continued(task, tmp_path):
    fit(task.model(), task, epochs=1, lr=0.01, checkpoint=tmp_path / "c.pt")
    fresh, other, progress = task.model(), task.model(), Lines()
    fit(other, task, epochs=1, lr=0.02, checkpoint=tmp_path / "c.pt", progress=progress)
    fit(fresh, task, epochs=1, lr=0.02)
    assert same(fresh, other) and "other settings" in progress.said[0]


def test_masked_weights_stay_exactly_zero(task):
    module = task.model()
    name = "blocks.0.layers.0.0.weight"
    masks = {name: torch.rand(module.state_dict()[name].shape, generator=torch.Generator().manual_seed(0)) > 0.5}
    seen = []

    class Watching(FitHooks):
        def loss_term(self) -> None:
            weight = module.state_dict()[name]
            seen.append(bool((weight[~masks[name]] == 0).all()))

    before = module.state_dict()[name].clone()
    fit(module, task, epochs=2, lr=0.01, weight_decay=0.1, masks=masks, hooks=Watching())
    weight = module.state_dict()[name]
    assert all(seen) and len(seen) == 10
    assert (weight[~masks[name]] == 0).all() and not torch.signbit(weight[~masks[name]]).any()
    assert (weight[masks[name]] != before[masks[name]]).all()


def test_hooks_may_tighten_the_masks(task):
    module = task.model()
    masks = {"classifier.weight": torch.ones(10, 64, dtype=torch.bool)}

    class Gradual(FitHooks):
        def after_step(self, step: int, total_steps: int) -> None:
            masks["classifier.weight"][:, : step * 4] = False

    fit(module, task, epochs=1, lr=0.01, masks=masks, hooks=Gradual())
    assert (module.classifier.weight[:, :20] == 0).all() and (module.classifier.weight[:, 20:] != 0).all()


def test_the_first_step_by_hand(task):
    """One AdamW step moves every weight by lr * sign(gradient) (bias-corrected moments are equal), after decay."""
    module, reference = task.model(), task.model().train()
    fit(module, task, epochs=1e-9, lr=1.0, weight_decay=0.1, evaluate=False)
    batch = next(task.batches("train"))
    reference = reference.to(memory_format=torch.channels_last)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        F.cross_entropy(reference(batch.images), batch.labels).backward()
    rate = one_cycle(0, 1, 1.0)
    gradient = reference.classifier.weight.grad
    sure = gradient.abs() > 1e-4  # Adam's eps is 1e-8
    expected = reference.classifier.weight * (1 - 0.1 * rate) - rate * gradient.sign()
    assert torch.allclose(module.classifier.weight[sure], expected[sure], rtol=1e-3, atol=1e-5)
    bias = reference.classifier.bias - rate * reference.classifier.bias.grad.sign()  # no decay
    assert torch.allclose(module.classifier.bias, bias, rtol=1e-3, atol=1e-5)


@given(st.integers(1, 5), st.integers(2, 7), st.floats(0.5, 8))
@settings(max_examples=25, deadline=None)
def test_distillation_loss_by_hand(task, rows, classes, temperature):
    generator = np.random.default_rng(rows * classes)
    student, teacher = generator.normal(size=(2, rows, classes)) * 3
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        p = [math.exp(v / temperature) for v in t]
        q = [math.exp(v / temperature) for v in s]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / rows
    found = task.distill_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    assert float(found) == pytest.approx(expected * temperature**2, rel=1e-6, abs=1e-9)
    assert float(task.distill_loss(torch.from_numpy(teacher), torch.from_numpy(teacher), temperature)) == pytest.approx(0, abs=1e-9)


def test_pure_distillation_follows_the_teacher_and_leaves_it_alone(task):
    teacher = build_trained(task)
    before, mode = copy.deepcopy(teacher), teacher.train().training
    student = task.model()
    fit(student, task, epochs=4, lr=0.01, teacher=teacher, distill=1.0)
    assert teacher.training == mode and same(teacher, before)
    images = torch.cat([b.images for b in task.batches("val")])
    with torch.no_grad():
        agree = (student(images).argmax(1) == teacher.eval()(images).argmax(1)).float().mean()
        untrained = (task.model().eval()(images).argmax(1) == teacher(images).argmax(1)).float().mean()
    assert agree > 0.5 > untrained


def build_trained(task) -> nn.Module:
    module = task.model()
    fit(module, task, epochs=4, lr=0.01, evaluate=False)
    return module


@pytest.mark.parametrize(("epochs", "steps", "rows"), [(0, 0, 0), (1, 5, 1), (1.5, 8, 2), (0.4, 2, 1), (0.01, 1, 1)])
def test_fractions_of_epochs(task, epochs, steps, rows):
    class Counting(FitHooks):
        count = 0

        def after_step(self, step: int, total_steps: int) -> None:
            self.count += 1
            assert step == self.count and total_steps == steps

    hooks = Counting()
    assert len(fit(task.model(), task, epochs=epochs, lr=0.01, hooks=hooks, evaluate=False)) == rows and hooks.count == steps


def test_limit_uses_fewer_samples(task):
    class Counting(FitHooks):
        def after_step(self, step: int, total_steps: int) -> None:
            assert total_steps == 2

    fit(task.model(), task, epochs=1, lr=0.01, limit=64, hooks=Counting(), evaluate=False)


def test_the_schedule():
    rates = [one_cycle(step, 100, 2.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.08) and max(rates) == rates[20] == 2.0
    assert rates[:21] == sorted(rates[:21]) and rates[20:] == sorted(rates[20:], reverse=True) and 0 < rates[-1] < 0.01
    assert rates[60] == pytest.approx(2.0 * (0.002 + 0.998 / 2))  # half way down the cosine


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_trains_and_is_another(task, schedule):
    module, other = task.model(), task.model()
    assert fit(module, task, epochs=4, lr=0.004, schedule=schedule)[-1]["loss"] < 2
    fit(other, task, epochs=4, lr=0.004, schedule=next(name for name in SCHEDULES if name != schedule), evaluate=False)
    assert not same(module, other)


def test_the_cosine_falls_from_the_peak_and_the_constant_stays():
    rates = [SCHEDULES["cosine"](step, 100, 2.0) for step in range(100)]
    assert rates[0] == 2.0 and rates == sorted(rates, reverse=True) and rates[50] == pytest.approx(1.002) and 0 < rates[-1] < 0.01
    assert {SCHEDULES["constant"](step, 100, 2.0) for step in range(100)} == {2.0}


def test_the_average_of_weights_by_hand(task):
    """A window longer than the training is the plain mean of the weights after each step; what the masks exclude at the end is 0 in it."""
    module, masks, seen = task.model(), {"classifier.weight": torch.ones(10, 64, dtype=torch.bool)}, []

    class Watching(FitHooks):
        def after_step(self, step: int, total_steps: int) -> None:
            masks["classifier.weight"][:, : 4 * step] = False
            apply_masks_(module, masks)
            seen.append({name: tensor.clone() for name, tensor in module.state_dict().items()})

    rows = fit(module, task, epochs=2, lr=0.01, masks=masks, hooks=Watching(), ema=1.0)
    assert len(seen) == 10 and rows[-1]["accuracy"] == task.evaluate(module)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            mean = torch.stack([state[name] for state in seen]).mean(0)
            assert torch.allclose(tensor, mean.masked_fill(~masks[name], 0) if name in masks else mean, atol=1e-5), name
    assert (module.classifier.weight[:, :40] == 0).all() and (module.classifier.weight[:, 40:] != 0).all()


def test_a_window_of_one_step_is_no_average(task):
    plain, averaged = task.model(), task.model()
    assert fit(plain, task, epochs=1, lr=0.01) == fit(averaged, task, epochs=1, lr=0.01, ema=1e-9) and same(plain, averaged)


def test_divergence_is_an_error(task):
    class Exploding(FitHooks):
        def loss_term(self) -> Tensor:
            return torch.tensor(float("inf"))

    with pytest.raises(NpasError, match="diverged"):
        fit(task.model(), task, epochs=1, lr=0.01, hooks=Exploding())


def test_threads_and_memory_format_are_restored(task):
    module, before = task.model(), torch.get_num_threads()
    fit(module, task, epochs=0.2, lr=0.01, threads=2)
    assert torch.get_num_threads() == before and module.stem[0].weight.is_contiguous()


def test_recalibrated_statistics_are_those_of_the_training_images(task):
    module = task.model().eval()
    weights = copy.deepcopy(module.stem[0].weight)
    recalibrate_bn(module, task)
    norm, first = module.stem[1], module.stem[0]
    with torch.no_grad():
        outputs = [first(b.images) for b in task.batches("train")]
    assert torch.allclose(norm.running_mean, torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, torch.stack([o.var((0, 2, 3)) for o in outputs]).mean(0), rtol=1e-4)
    assert norm.momentum == 0.1 and not module.training and not norm.training and torch.equal(weights, first.weight)


def test_interrupted_leaves_the_checkpoint_and_the_module_usable(task, tmp_path: Path):
    class Interrupting(FitHooks):
        def after_step(self, step: int, total_steps: int) -> None:
            if step == 7:
                raise KeyboardInterrupt

    module = task.model()
    with pytest.raises(KeyboardInterrupt):
        fit(module, task, epochs=2, lr=0.01, hooks=Interrupting(), checkpoint=tmp_path / "c.pt")
    assert (tmp_path / "c.pt").exists()
    assert task.evaluate(module) >= 0


USER_TASK = '''
import torch
from torch import nn
from stages.tasks import Task

class Line(Task):
    """Fit y = 2 x + 1; the metric is 1 for a perfect fit."""

    metric_name = "fit"

    def __init__(self, config):
        self.config = config
        x = torch.linspace(-1, 1, 40)[:, None]
        self.splits = {"train": x[::2], "val": x[1::4], "test": x[3::4]}

    def model(self): return nn.Linear(1, 1)
    def example(self, batch=1): return torch.zeros(batch, 1)
    def size(self, split): return len(self.splits[split])
    def steps(self, limit=0): return -(-(limit or self.size("train")) // 5)
    def batches(self, split, *, epoch=0, limit=0, seed=0):
        for x in self.splits[split][: limit or None].split(5):
            yield {"x": x, "y": 2 * x + 1}
    def inputs(self, batch): return batch["x"]
    def loss(self, outputs, batch, label_smoothing=0.0): return nn.functional.mse_loss(outputs, batch["y"])
    def distill_loss(self, outputs, teacher_outputs, temperature): return nn.functional.mse_loss(outputs, teacher_outputs)
    def evaluate(self, module, split="val"):
        with torch.no_grad():
            return 1 / (1 + sum(float(self.loss(module(b["x"]), b)) for b in self.batches(split)))
'''


def test_a_task_of_the_user_s_own(project: Path, monkeypatch: pytest.MonkeyPatch):
    (project / "npas_user_task.py").write_text(USER_TASK)
    monkeypatch.syspath_prepend(str(project))
    task = make_task(TaskConfig(task="npas_user_task:Line"))
    module, progress = task.model(), Lines()
    rows = fit(module, task, epochs=60, lr=0.2, progress=progress)
    assert rows[-1]["accuracy"] > 0.99 and module.weight.item() == pytest.approx(2, abs=0.1)
    assert progress.lines[-1].startswith("epoch 60/60") and "  fit " in progress.lines[-1]
    student = task.model()
    fit(student, task, epochs=60, lr=0.2, teacher=module, distill=1.0, evaluate=False)
    assert student.weight.item() == pytest.approx(module.weight.item(), abs=0.1)
