"""Kernel alignment: the formula, its invariances, which layers are compared, and that it teaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.config import Task as TaskConfig
from stages.graph import trace
from stages.tasks import feature_layers, fit, make_task, recalibrate_bn
from stages.tasks.alignment import Taps, alignment_loss, kernel_alignment
from stages.tasks.vision import torchvision


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_formula_by_its_other_form(samples, c, d, seed):
    """CAT writes it with feature products: |Y'X|^2 / (|X'X| |Y'Y|), Frobenius norms."""
    x, y = normal(seed, samples, c, 2, 2), normal(seed + 1, samples, d)
    a, b = x.flatten(1).double().numpy(), y.double().numpy()
    expected = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert float(kernel_alignment(x, y)) == pytest.approx(expected, rel=1e-4) and 0 <= float(kernel_alignment(x, y)) <= 1.0001


def test_rotations_and_scales_are_the_same_and_other_features_are_not():
    x = normal(0, 8, 5)
    rotation = torch.linalg.qr(normal(1, 5, 5))[0]
    assert float(kernel_alignment(x, 3 * x @ rotation)) == pytest.approx(1, abs=1e-5)
    assert float(kernel_alignment(x, normal(2, 8, 7))) < 0.9
    assert float(alignment_loss([x, x], [x, normal(2, 8, 7)])) == pytest.approx((1 - float(kernel_alignment(x, normal(2, 8, 7)))) / 2, abs=1e-5)
    assert float(kernel_alignment(x, torch.zeros(8, 2))) == 0


@pytest.fixture(scope="module")
def task():
    return make_task(TaskConfig(model="npas_tiny", image_size=16, train_limit=160, batch_size=32, threads=1))


def test_each_resolution_gives_the_output_of_its_last_block(task):
    module = task.model().eval()
    paths = feature_layers(trace(module, task.example()), module)
    assert paths == ("stem", "blocks.1", "blocks.2")
    with Taps(module, paths) as taps, torch.no_grad():
        module(task.example(2))
    assert len({f.shape[2:] for f in taps.features}) == len(paths) and all(len(f) == 2 for f in taps.features)
    assert not module.stem._forward_hooks


def test_residual_networks_give_whole_stages():
    module = torchvision.models.resnet18(weights=None).eval()
    assert feature_layers(trace(module, torch.zeros(1, 3, 64, 64)), module) == ("relu", "layer1", "layer2", "layer3", "layer4")


def test_features_come_closer_than_by_distillation_of_outputs_alone(task):
    teacher = task.model()
    fit(teacher, task, epochs=4, lr=0.01, evaluate=False)
    paths = feature_layers(trace(teacher, task.example()), teacher)
    batch = task.inputs(next(task.batches("val")))

    def distance(align: float) -> float:
        student = task.model()
        fit(student, task, epochs=4, lr=0.01, evaluate=False, teacher=teacher, distill=1.0, align=align, features=paths)
        recalibrate_bn(student, task)
        with torch.no_grad(), Taps(student, paths) as a, Taps(teacher.eval(), paths) as b:
            student(batch), teacher(batch)
        return float(alignment_loss(a.features, b.features))

    assert distance(1.0) < 0.3 * distance(0.0)


def test_without_a_teacher_or_a_weight_features_change_nothing(task):
    a, b = task.model(), task.model()
    assert fit(a, task, epochs=1, lr=0.01) == fit(b, task, epochs=1, lr=0.01, align=1.0, features=("stem",))
    c, d, teacher = task.model(), task.model(), task.model()
    assert fit(c, task, epochs=1, lr=0.01, teacher=teacher, distill=0.5) == fit(d, task, epochs=1, lr=0.01, teacher=teacher, distill=0.5, align=0.0, features=("stem",))
