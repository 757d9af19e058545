"""Fixtures: forked ranks, and a folder on a disk that is soon full."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Any]]]:
    """Call with a scenario of ranks.py, path, world and its options; the ranks' outcomes."""
    script = Path(__file__).with_name("ranks.py")
    stores = tmp_path_factory.mktemp("stores")
    numbers = itertools.count()
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def run(scenario: str, path: Path, world: int = 1, **options: Any) -> list[Any]:
        assert process.stdin is not None and process.stdout is not None
        store = str(stores / str(next(numbers)))
        request = {"scenario": scenario, "path": str(path), "world": world, "store": store}
        process.stdin.write(json.dumps({**request, **options}) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield run
    assert process.stdin is not None
    process.stdin.close()
    process.wait(30)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted folder of 4 MiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)
