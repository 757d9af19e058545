"""What a worker's Python imports, and by which number its group is known."""

import os
import subprocess
import sys
from pathlib import Path

from moelstrom.cluster.backend import Start
from moelstrom.cluster.environment import worker_env

MODULES = ("psutil", "pydantic", "tokenizers", "sitecustomize")

DRIVER = """
import sys
from moelstrom.cluster.config import ClusterConfig
from moelstrom.cluster.spec import WorkerSpec
from moelstrom.cluster.supervisor import run_group

program = "import os, psutil, pydantic, tokenizers; print(os.environ['MOELSTROM_GENERATION'])"
child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}], check=True)"
spec = WorkerSpec((sys.executable, "-P", "-c", child), 1)
show = lambda rank, event: print(event.get("line", ""), flush=True)
sys.exit(run_group(spec, ClusterConfig(max_restarts=0), on_event=show).exit_code)
"""


def started(env: dict[str, str]) -> dict[str, str]:
    return worker_env(env, Start(("x",), {}, "/", None, 1, False, 0), "127.0.0.1")


def test_the_current_folder_is_on_no_path() -> None:
    separator = os.pathsep
    assert started({"PYTHONPATH": f"{separator}/a{separator}{separator}/b"})["PYTHONPATH"] == (
        f"/a{separator}/b"
    )
    assert "PYTHONPATH" not in started({"PYTHONPATH": separator})
    assert started({})["PYTHONSAFEPATH"] == "1"


def test_no_process_of_a_run_imports_what_lies_in_its_folder(tmp_path: Path) -> None:
    """Neither Ray's actor nor the worker nor a child of its own; the command itself runs `-P`."""
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text("import os; os.mkdir(f'{__file__}.ran')")
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRIVER],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "1" in done.stdout.split()
    assert not list(tmp_path.glob("*.ran"))
