from __future__ import annotations

import math

import pytest
import torch

from nanollama.monitor.lost import MAX_SKIPPED, Diverged, LostSteps
from nanollama.monitor.readback import LAG, Readback, StepNumbers

CPU = torch.device("cpu")
ONE, NAN, INF = (torch.tensor(value) for value in (1.0, math.nan, math.inf))


def lost_steps(*, skip: bool) -> LostSteps:
    return LostSteps(skip=skip, batch_size=8, device=CPU)


def numbers(step: int, loss: float = 1.0, norm: float = 1.0) -> StepNumbers:
    return StepNumbers(step, loss, norm, 0.0, loss)


def test_after_a_lost_step_none_is_taken_unless_such_steps_are_skipped() -> None:
    steps = [(ONE, ONE), (ONE, NAN), (ONE, ONE), (INF, ONE), (ONE, ONE)]
    stopping, skipping = lost_steps(skip=False), lost_steps(skip=True)
    assert [float(stopping.judge(*step)) for step in steps] == [0, 1, 1, 1, 1]
    assert [float(skipping.judge(*step)) for step in steps] == [0, 1, 0, 1, 0]


def test_the_first_lost_step_is_named_however_late_it_is_looked_at() -> None:
    lost = lost_steps(skip=False)
    assert lost.look(numbers(6)) is None
    with pytest.raises(Diverged, match=r"at step 7: the loss is nan .* batch 6 \(sequences 48 to 55 .* after step 6"):
        lost.look(numbers(7, loss=math.nan))


def test_skipping_gives_up_after_many_in_a_row() -> None:
    lost = lost_steps(skip=True)
    for step in range(1, MAX_SKIPPED):
        assert f"step {step} is skipped, the {step}. of" in str(lost.look(numbers(step, norm=math.inf)))
    assert lost.look(numbers(MAX_SKIPPED)) is None
    for step in range(MAX_SKIPPED + 1, 2 * MAX_SKIPPED):
        lost.look(numbers(step, norm=math.inf))
    with pytest.raises(Diverged) as caught:
        lost.look(numbers(2 * MAX_SKIPPED, norm=math.inf))
    assert caught.value.step == 2 * MAX_SKIPPED - 1


def push(readback: Readback, step: int) -> None:
    bound = torch.tensor(step / 2, dtype=torch.float64) if step % 2 == 0 else None
    readback.push(step, torch.tensor([step, 2.0, 0.0]).double(), torch.tensor(0.5).double(), bound)


def test_numbers_come_back_from_the_cpu_at_once() -> None:
    readback = Readback(CPU)
    for step in (1, 2):
        push(readback, step)
        assert readback.pull() == [StepNumbers(step, step, 2.0, 0.0, 0.5, 1.0 if step == 2 else None)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_numbers_come_back_from_a_gpu_a_fixed_number_of_steps_later() -> None:
    readback = Readback(torch.device("cuda"))
    found = []
    for step in range(1, 10):
        values = torch.full((3,), float(step), dtype=torch.float64, device="cuda")
        readback.push(step, values, values[0], None)
        found += [(step, each.step, each.loss) for each in readback.pull()]
    assert found == [(step, step - LAG, step - LAG) for step in range(LAG + 1, 10)]
    assert [each.step for each in readback.pull(everything=True)] == list(range(10 - LAG, 10))
