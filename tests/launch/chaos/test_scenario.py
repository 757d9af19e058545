"""Scenarios: what a file may say, and what a seed draws."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from moelstrom import UserError
from moelstrom.launch.chaos.scenario import KINDS, WEIGHTS, Draw, check, draw, load


def write(folder: Path, **values: Any) -> Path:
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_every_kind_with_its_defaults(tmp_path: Path) -> None:
    own = {"node_lost": {"node": "10.0.0.2"}}
    entries = [{"kind": kind, "at_step": 5, **own.get(kind, {})} for kind in KINDS]
    path = write(tmp_path, faults=entries, cut=["ip", "{node}"], heal=["ip"])
    found = load(path)
    assert [fault.kind for fault in found.faults] == list(KINDS)
    assert [type(fault) for fault in found.faults] == list(KINDS.values())


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"kind": "meteor", "at_step": 1}, "faults.0.kind: 'meteor' does not fit; give kill, stop"),
        ("kill", "faults.0.kind: null does not fit"),
        ({"kind": "kill"}, "faults.0: give one of at_step and after_s"),
        ({"kind": "kill", "at_step": 1, "after_s": 1.0}, "give one of at_step and after_s"),
        ({"kind": "kill", "at_step": 0}, "at_step: 0 does not fit; give 1 or more"),
        ({"kind": "kill", "at_step": 1, "factor": 2}, "factor: no such field"),
        ({"kind": "slow", "at_step": 1, "factor": 1}, "factor: 1 does not fit; give more than 1"),
        ({"kind": "slow", "at_step": 1, "factor": float("inf")}, "give a finite number"),
        ({"kind": "node_lost", "at_step": 1}, "node: is missing; add it"),
        ({"kind": "node_lost", "at_step": 1, "node": "a"}, "node_lost needs `cut` and `heal`"),
    ],
)
def test_mistakes_name_the_field(tmp_path: Path, entry: Any, words: str) -> None:
    path = write(tmp_path, faults=[entry])
    with pytest.raises(UserError) as caught:
        load(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("faults", [[], 3, {"kind": "kill"}])
def test_a_scenario_lists_faults(tmp_path: Path, faults: Any) -> None:
    with pytest.raises(UserError, match="lists no fault"):
        load(write(tmp_path, faults=faults))


def test_a_seed_draws_the_same_and_another_others() -> None:
    plan = Draw(faults=50, seed=3, spacing=20)
    assert draw(plan, 4) == draw(plan, 4)
    assert draw(plan, 4) != draw(Draw(faults=50, seed=4, spacing=20), 4)


def test_drawn_faults_keep_their_distance_and_their_ranks() -> None:
    faults = draw(Draw(faults=200, seed=1, spacing=20), 3).faults
    steps = [fault.at_step or 0 for fault in faults]
    assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(steps))
    assert {fault.kind for fault in faults} == set(WEIGHTS)
    assert {getattr(fault, "rank", 0) for fault in faults} == {0, 1, 2}


def test_a_node_is_lost_once() -> None:
    weights = {"node_lost": 5.0, "kill": 1.0, "nan": 0.0}
    commands = {"cut": ("cut",), "heal": ("heal",)}
    plan = Draw(faults=100, weights=weights, node="b", lost_s=7, **commands)
    faults = draw(plan, 2).faults
    assert {fault.kind for fault in faults} == {"node_lost", "kill"}
    (lost,) = (fault for fault in faults if fault.kind == "node_lost")
    assert (lost.node, lost.duration_s) == ("b", 7)


@pytest.mark.parametrize(
    "weights, words",
    [
        ({"flood": 1.0}, "no kind 'flood'"),
        ({"kill": 0.0}, "no kind has a weight above 0"),
        ({"node_lost": 1.0}, "node_lost needs the address"),
    ],
)
def test_weights_that_draw_nothing(weights: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        draw(Draw(faults=1, weights=weights), 2)


def test_what_the_run_cannot_do_is_refused_before_it() -> None:
    found = draw(Draw(faults=5, seed=0, weights={"kill": 1.0}), 2)
    check(found, 2, 5)
    with pytest.raises(UserError, match=r"add --set cluster\.max_restarts=5"):
        check(found, 2, 4)
    with pytest.raises(UserError, match="rank: 1 is none of the run's 1 ranks"):
        check(found, 1, 5)
