"""Networks compiled for several threads: the same results in any split, from several callers at once, and after a fork."""

from __future__ import annotations

import multiprocessing
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_kit import Fire, check, inputs, randomised
from torch import nn

from stages.compiler import CompiledModel, compile_model
from stages.compiler.kernels.units import WANTED, outer, units
from stages.errors import UsageError
from stages.graph import trace
from stages.schemes import prune_, uniform_scheme


def fire(threads: int) -> CompiledModel:
    """A network of all kinds of kernels, pruned."""
    module, example = randomised(Fire()), inputs(2, 3, 37, 29)
    scheme = uniform_scheme(trace(module, example), "block-punched", 2.0, 8)
    prune_(module, scheme)
    return compile_model(module, example, scheme, threads=threads)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_any_number_of_threads_gives_the_same_numbers(threads: int) -> None:
    one, several, x = fire(1), fire(threads), inputs(2, 3, 37, 29, seed=9).numpy()
    expected = one(x)[0]
    for _ in range(20):
        np.testing.assert_array_equal(several(x)[0], expected)
    assert several.manifest["target"]["threads"] == threads
    assert len(several.profile(2)) == len(several.manifest["kernels"])


def test_a_model_for_three_threads_runs_on_fewer_and_refuses_more() -> None:
    model, x = fire(3), inputs(2, 3, 37, 29, seed=9).numpy()
    expected = model(x)[0]
    for threads in (1, 2, 3, 2):
        model.manifest["target"]["threads"] = threads
        np.testing.assert_array_equal(model(x)[0], expected)
    model.manifest["target"]["threads"] = 4
    with pytest.raises(UsageError, match="refused to run"):
        model(x)


def test_callers_at_the_same_time_wait_for_each_other() -> None:
    model, x = fire(2), inputs(2, 3, 37, 29, seed=9).numpy()
    expected, path = model(x)[0], model.path
    twins = [CompiledModel(path) for _ in range(3)]  # one library, a workspace each
    wrong: list[int] = []

    def call(index: int) -> None:
        for _ in range(20):
            if not np.array_equal(twins[index](x)[0], expected):
                wrong.append(index)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not wrong and not any(caller.is_alive() for caller in callers)


def _forked(model: CompiledModel, x: np.ndarray, queue: multiprocessing.queues.Queue) -> None:  # type: ignore[type-arg]
    queue.put(model(x)[0])


def test_a_forked_process_starts_threads_of_its_own() -> None:
    model, x = fire(2), inputs(2, 3, 37, 29, seed=9).numpy()
    expected = model(x)[0]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_forked, args=(model, x, queue))
    child.start()
    np.testing.assert_array_equal(queue.get(timeout=60), expected)
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.parametrize("threads", [0, -1, 65])
def test_an_impossible_number_of_threads(threads: int) -> None:
    with pytest.raises(UsageError, match="threads"):
        compile_model(nn.ReLU(), torch.zeros(1, 2), threads=threads)


@settings(max_examples=8, deadline=None)
@given(channels=st.integers(1, 40), filters=st.integers(1, 70), size=st.integers(1, 19), stride=st.integers(1, 2), threads=st.integers(2, 5))
def test_every_unit_is_done_once(channels: int, filters: int, size: int, stride: int, threads: int) -> None:
    module = randomised(nn.Sequential(nn.Conv2d(channels, filters, 3, stride, 1), nn.ReLU(), nn.Conv2d(filters, 5, 1)))
    example = inputs(1, channels, size, size)
    many = compile_model(module, example, threads=threads)
    np.testing.assert_array_equal(many(example.numpy())[0], check(module, tuple(example.shape))(example.numpy())[0])


def test_units_of_nests() -> None:
    assert outer((56, 4, 3)) == 1 and outer((4, 4, 3)) == 3 and outer((2, WANTED, 9)) == 2
    assert units([(56, 4, 3), (7, 1)]) == 56
    assert units([]) == 1
