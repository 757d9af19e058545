"""What the injector does to processes, files and networks, and how it undoes that."""

import errno
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import psutil

from ... import UserError
from ...cluster.spec import SAFE_PATH
from ...moe.checkpoint.folder import MANIFEST, MARKER, step_folders
from .control import VARIABLE

MOST_FILLED = 2**30
"""Bytes of free space above which a file system is not filled."""
FILL_NAME = "chaos.fill"
FILL_PART = 2**20
COMMAND_TIMEOUT_S = 30.0
KILL, STOP = signal.SIGKILL, signal.SIGSTOP


def send(pid: int, node: str, number: int, control: Path) -> None:
    """Signal a worker, by a Ray task where its node is another machine.

    Nothing happens to a process that is not (or no longer) a worker of this control folder.
    """
    if _is_worker(pid, str(control)):
        os.kill(pid, number)
    elif not _is_here(node):
        _send_there(pid, node, number, str(control))


def _is_here(address: str) -> bool:
    entries = psutil.net_if_addrs().values()
    return any(entry.address == address for found in entries for entry in found)


def _is_worker(pid: int, control: str) -> bool:
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"{VARIABLE}={control}".encode() in text.split(b"\0")


def _send_there(pid: int, node: str, number: int, control: str) -> None:
    import ray

    def kill() -> None:
        if _is_worker(pid, control):
            os.kill(pid, number)

    task = ray.remote(kill).options(num_cpus=0, resources={f"node:{node}": 0.001})
    try:
        ray.get(task.remote(), timeout=COMMAND_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"node {node}: cannot signal its worker ({reason})") from None


def complete_checkpoints(path: Path) -> list[Path]:
    """The committed ones under `path`, oldest first."""
    return [folder for folder in step_folders(path) if (folder / MARKER).exists()]


def flip_bit(folder: Path, which: str, seed: int) -> str:
    """Flip one bit of a checkpoint's manifest or of its largest file; returns which."""
    files = [folder / MANIFEST] if which == "manifest" else list(folder.glob("*.safetensors"))
    path = max(files, key=lambda file: file.stat().st_size)
    # Past the header, which is short: among the numbers.
    place = random.Random(seed).randrange(path.stat().st_size // 2, path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << seed % 8]))
    return f"{path.name}, byte {place}"


def check_fillable(path: Path) -> None:
    """Refuse to fill a file system that has much room. Raises UserError."""
    free = shutil.disk_usage(path).free
    if free > MOST_FILLED:
        raise UserError(
            f"checkpoint.path {path}: disk_full would fill {free / 2**30:.0f} GiB of its file "
            "system; put it on one with less than 1 GiB free, such as a small tmpfs"
        )


def fill(path: Path) -> Path:
    """Leave no space on the file system of `path`; returns the file that holds it."""
    check_fillable(path)
    target = path / FILL_NAME
    size = FILL_PART
    with target.open("wb", buffering=0) as file:
        while size:
            try:
                file.write(bytes(size))
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                size //= 2
    return target


def run_command(command: tuple[str, ...], node: str) -> None:
    """Run a command of the scenario, with the node's address in it. Raises UserError."""
    words = [word.replace("{node}", node) for word in command]
    # A script of the user's may import what lies beside it.
    env = {name: value for name, value in os.environ.items() if name != SAFE_PATH}
    limit = COMMAND_TIMEOUT_S
    try:
        subprocess.run(words, env=env, check=True, capture_output=True, timeout=limit)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"cut, heal: {' '.join(words)}: {error}; give a command that works"
        ) from None
