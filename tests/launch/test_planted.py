"""What lies in the folder of a run, or beside its YAML, is not run; its secrets are nowhere."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch_runs import make_dataset, write_config

COMMAND = Path(sys.executable).with_name("moelstrom")
LIBRARIES = {"moelstrom", "numpy", "psutil", "pydantic", "ray", "tokenizers", "torch", "yaml"}
MODULES = set(sys.stdlib_module_names) | LIBRARIES | {"sitecustomize", "usercustomize"}
# Of the modules that are built in, so that it is not one of the planted.
PLANTED = "import posix; posix.mkdir(__file__ + '.ran')"

SECRET = "planted-93d1e7c2"
"""Only workers have it as WORKER_TOKEN and WORKER_KEY."""

POOL = """#!{python}
from moelstrom.kernels.check import _pool
from moelstrom.launch import cli

def app():
    with _pool(1) as pool:
        print(pool.submit(abs, -7).result())

if __name__ == "__main__":
    cli.app = app
    cli.main()
"""


def plant(folder: Path) -> None:
    for name in MODULES:
        (folder / f"{name}.py").write_text(PLANTED)


def started(config: Path, folder: Path) -> "subprocess.Popen[str]":
    """`moelstrom train` as a user starts it, in `folder`, where the secret is to be had."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HERE": SECRET}
    words = [str(COMMAND), "train", str(config)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True)


def ran(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.glob("*.ran")]


def of_all_processes(name: str) -> Iterator[bytes]:
    """A file of /proc of each process that may be looked at."""
    for path in Path("/proc").glob(f"[0-9]*/{name}"):
        try:
            yield path.read_bytes()
        except OSError:
            continue  # It has ended, or is another user's.


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The current folder and the YAML's."""
    found = tmp_path / "current", tmp_path / "beside"
    for folder in found:
        folder.mkdir()
        plant(folder)
    return found


def test_the_command_alone_runs_nothing_planted(folders: tuple[Path, Path], tmp_path: Path) -> None:
    current, beside = folders
    sections = {"steps": 1, "layout": {"dp": 1, "ep": 1}, "cluster": {"launcher": "none"}}
    config = write_config(beside, make_dataset(tmp_path), tmp_path / "run", **sections)
    process = started(config, current)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert not ran(current, beside)


@pytest.mark.slow
def test_two_ranks_run_nothing_planted_and_leave_no_secret(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Every file of the run, every command line and all that is printed are searched."""
    current, beside = folders
    (tmp_path / "key").write_text(f"{SECRET}\n")
    env = {"WORKER_TOKEN": "env:HERE", "WORKER_KEY": f"file:{tmp_path / 'key'}"}
    sections = {"steps": 2, "checkpoint": {"interval": 1}, "cluster": {"env": env}}
    config = write_config(beside, make_dataset(tmp_path), tmp_path / "run", **sections)
    process = started(config, current)
    lines: set[bytes] = set()
    workers: set[bytes] = set()
    while process.poll() is None:
        lines.update(of_all_processes("cmdline"))
        workers.update(env for env in of_all_processes("environ") if b"\0WORKER_TOKEN=" in env)
        time.sleep(0.05)
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert not ran(current, beside)
    wanted = {f"WORKER_{name}={SECRET}".encode() for name in ("TOKEN", "KEY")}
    ranks = {line for env in workers for line in env.split(b"\0") if line.startswith(b"RANK=")}
    assert ranks == {b"RANK=0", b"RANK=1"}
    assert all(wanted <= set(env.split(b"\0")) for env in workers)
    assert any(b"moelstrom.launch.worker" in line for line in lines)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"config.yaml", "rank-0.log", "rank-1.log"} <= {path.name for path in files}
    found = [path.read_bytes() for path in files] + list(lines) + [(out + error).encode()]
    assert not any(SECRET.encode() in text for text in found)


def test_a_pool_of_the_command_runs_nothing_planted(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    program = tmp_path / "command"
    program.write_text(POOL.format(python=sys.executable))
    program.chmod(0o755)
    done = subprocess.run([program], cwd=folders[0], capture_output=True, text=True, timeout=200)
    assert done.stdout == "7\n", done.stderr
    assert not ran(folders[0])
