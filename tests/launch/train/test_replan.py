"""A resume under another plan says from what to what, and refuses to go back."""

import pytest

from moelstrom import UserError
from moelstrom.launch.config import load
from moelstrom.launch.train.replan import changed_plan, check_steps_left

RUN = ["steps=100", "optimizer.lr=0.001", "schedule={name: cosine, min_ratio: 0.1}"]


def changed(*overrides: str, step: int = 100) -> str:
    saved = load("tiny", RUN).model_dump(mode="json")
    return changed_plan(saved, load("tiny", [*RUN, *overrides]), step)


def test_the_same_plan_says_nothing() -> None:
    assert changed() == "" and changed("log_interval=3") == ""
    assert changed_plan({}, load("tiny", RUN), 5) == ""


def test_a_jump_of_the_rate_is_told() -> None:
    # A cosine at its end, 0.0001, is in its middle again: (0.1 + 0.9 / 2) of the peak.
    assert changed("steps=200") == (
        "step 100: the plan has changed: steps 100 -> 200; the learning rate goes on at 0.00055, "
        "not 0.0001"
    )
    assert "optimizer.lr 0.001 -> 0.002; the learning rate" in changed("optimizer.lr=0.002")
    assert "schedule.name cosine -> wsd" in changed("schedule.name=wsd")


def test_a_change_without_a_jump() -> None:
    text = changed("optimizer.weight_decay=0.25")
    assert text == "step 100: the plan has changed: optimizer.weight_decay 0.1 -> 0.25"


def test_fewer_steps_than_done_are_refused() -> None:
    run = load("tiny", RUN)
    check_steps_left(run, 100)
    with pytest.raises(UserError, match=r"^steps: 100 is below the 101 .* done; raise it"):
        check_steps_left(run, 101)
