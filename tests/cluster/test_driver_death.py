"""The driver, its own local Ray and the workers, as one tree of processes that must vanish."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

DRIVER = """
import sys
from moelstrom.cluster.config import ClusterConfig
from moelstrom.cluster.spec import WorkerSpec
from moelstrom.cluster.supervisor import run_group

def show(rank, event):
    if event["kind"] == "spawned":
        print(event["pid"], flush=True)

print(run_group(WorkerSpec(("sleep", "600"), 2), ClusterConfig(), on_event=show))
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_nothing_remains(number: signal.Signals, code: int, tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    )
    assert driver.stdout is not None
    try:
        workers = {int(driver.stdout.readline()) for _ in range(2)}
        tree = psutil.Process(driver.pid).children(recursive=True)
        assert workers < {process.pid for process in tree}
        if number == signal.SIGKILL:
            # Ray's two agents on the node take a minute to notice that nobody cleaned up.
            tree = [process for process in tree if "Agent" not in " ".join(process.cmdline())]
        driver.send_signal(number)
        assert driver.wait(30) in (code, -number)
        left = psutil.wait_procs(tree, timeout=20)[1]
        assert not left
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()
