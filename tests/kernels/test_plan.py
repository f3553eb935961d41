"""Where activations lie in the workspace: never two at once in one place, whatever the graph and however many threads."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from stages.compiler.ir import Layout, Program, Step, Value
from stages.compiler.plan import ALIGNMENT, FRONT, plan


@st.composite
def programs(draw: st.DrawFn) -> tuple[Program, dict[str, Layout]]:
    """A chain of steps that also read older results, of a few pixels up to more than a core's cache."""
    count = draw(st.integers(1, 12))
    steps, placed = [], {"v0": Layout((1, 16, 8, 8), 16)}
    for i in range(1, count + 1):
        older = draw(st.lists(st.integers(0, i - 1), max_size=2))
        steps.append(Step(f"s{i}", "elementwise", (f"v{i - 1}", *(f"v{k}" for k in older)), f"v{i}"))
        side = draw(st.sampled_from([1, 7, 14, 28, 112]))
        channels = 16 * draw(st.integers(1, 4))
        placed[f"v{i}"] = Layout((1, channels, side, side), channels)
    values = {name: Value(name, layout.shape) for name, layout in placed.items()}
    return Program(tuple(steps), values, (("v0", (1, 16, 8, 8)),), ((f"v{count}", placed[f"v{count}"].shape),)), placed


@settings(max_examples=200, deadline=None)
@given(made=programs(), threads=st.integers(1, 4), scratch=st.integers(0, 1000))
def test_what_is_alive_at_once_lies_apart(made: tuple[Program, dict[str, Layout]], threads: int, scratch: int) -> None:
    program, placed = made
    found = plan(program, placed, scratch, threads)
    for index, step in enumerate(program.steps):
        before = {name for s in program.steps[: index + 1] for name in (*s.inputs, s.output)}
        after = {name for s in program.steps[index:] for name in (*s.inputs, s.output)}
        spans = sorted((found.offsets[name], found.offsets[name] + 4 * placed[name].size) for name in before & after)
        assert {*step.inputs, step.output} <= before & after
        assert all(end <= begin for (_, end), (begin, _) in zip(spans, spans[1:], strict=False))
        assert all(begin >= FRONT and begin % ALIGNMENT == 0 and end <= found.size for begin, end in spans)
    assert found.total >= found.size + threads * scratch


def test_several_threads_leave_what_they_have_just_used() -> None:
    """The memory of the last result but one is free again: one thread takes it, several take what lies behind."""
    shape = (1, 16, 28, 28)
    names = [f"v{i}" for i in range(5)]
    steps = tuple(Step(f"s{i}", "elementwise", (names[i],), names[i + 1]) for i in range(4))
    placed = {name: Layout(shape, 16) for name in names} | {"v1": Layout((1, 64, 28, 28), 64)}
    program = Program(steps, {name: Value(name, p.shape) for name, p in placed.items()}, (("v0", shape),), (("v4", shape),))
    one, two = (plan(program, placed, threads=threads) for threads in (1, 2))
    assert one.size == two.size
    assert one.offsets["v4"] == one.offsets["v2"] == FRONT
    assert len({two.offsets[name] for name in ("v2", "v3", "v4")}) == 3
