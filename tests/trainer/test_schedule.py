import pytest

from trainer.optim import Schedule


def test_the_step_schedule_falls_after_every_epoch() -> None:
    schedule = Schedule("step", 0.1, steps_per_epoch=5, num_steps=15)
    assert [schedule.factor(step) for step in range(15)] == pytest.approx([1] * 5 + [0.1] * 5 + [0.01] * 5)


def test_one_cycle_rises_for_a_tenth_and_falls_to_nothing() -> None:
    schedule = Schedule("one-cycle", 1.0, steps_per_epoch=5, num_steps=20)
    factors = [schedule.factor(step) for step in range(20)]
    assert factors[:3] == pytest.approx([0.5, 1, 1])
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert factors[11] == pytest.approx(0.5)
    assert factors[-1] < 0.01


def test_a_constant_rate_stays() -> None:
    schedule = Schedule("constant", 0.1, steps_per_epoch=5, num_steps=15)
    assert {schedule.factor(step) for step in range(15)} == {1}


def test_one_cycle_may_begin_late() -> None:
    late, whole = Schedule("one-cycle", 0.1, 10, 60, start=20), Schedule("one-cycle", 0.1, 10, 40)
    assert [late.factor(step) for step in range(20, 60)] == [whole.factor(step) for step in range(40)]
