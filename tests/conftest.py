"""What all tests share."""

import pytest
from hypothesis import settings

from moelstrom.cluster.spec import SAFE_PATH

# A machine may be busy: how long one example takes says nothing of what it found.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")


@pytest.fixture(autouse=True)
def _no_safe_path_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets it for its own processes; a test may call it in this one."""
    monkeypatch.delenv(SAFE_PATH, raising=False)
