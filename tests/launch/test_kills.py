"""The kill campaign in short; `python tests/kills.py` runs 20 trials."""

from pathlib import Path

import kills
import pytest


@pytest.mark.slow
def test_killed_runs_end_as_the_uninterrupted_one(tmp_path: Path) -> None:
    trials = kills.campaign(tmp_path, trials=3)
    assert all(trial.same and trial.restarts for trial in trials), trials
