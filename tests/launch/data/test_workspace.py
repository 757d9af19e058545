"""Who may go on in a folder that a preparation left."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moelstrom.launch.data.dataset import DomainInfo, SplitInfo
from moelstrom.launch.data.indexed import IndexedWriter
from moelstrom.launch.data.workspace import DONE, LOCK, Workspace, workspace

KEYS = {"a": "1", "b": "2"}


def finish(work: Workspace, name: str) -> None:
    """A small domain, whole."""
    made = []
    for split in ("train", "valid"):
        prefix = work.folder / f"{name}-{split}"
        with IndexedWriter(prefix, np.dtype(np.uint8)) as writer:
            writer.add(np.array([1, 2]))
        sizes = [Path(f"{prefix}.{kind}").stat().st_size for kind in ("bin", "idx")]
        made.append(
            SplitInfo(documents=1, tokens=2, bin_bytes=sizes[0], idx_bytes=sizes[1], bin_sha256="")
        )
    work.finish(name, DomainInfo(train=made[0], valid=made[1], duplicates=0, skipped=0))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_at_work_is_left_alone_and_a_dead_ones_taken_over(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with workspace(out, KEYS) as first:
        finish(first, "a")
        (first.folder / "b-train.bin.1234.tmp").write_bytes(b"half")
        with workspace(out, KEYS) as second:
            assert second.folder != first.folder
            assert not second.done
    with workspace(out, KEYS) as third:
        assert third.folder == first.folder
        assert list(third.done) == ["a"]
        files = {"a-train.bin", "a-train.idx", "a-valid.bin", "a-valid.idx"}
        assert names(third.folder) == {LOCK, DONE, *files}
    assert names(tmp_path) == {first.folder.name}


@pytest.mark.parametrize("damage", ["key", "size", "gone", "note"])
def test_nothing_is_taken_that_is_not_whole(tmp_path: Path, damage: str) -> None:
    out, keys = tmp_path / "out", dict(KEYS)
    with workspace(out, KEYS) as first:
        finish(first, "a")
    if damage == "key":
        keys["a"] = "other"
    elif damage == "size":
        (first.folder / "a-valid.bin").write_bytes(b"")
    elif damage == "gone":
        (first.folder / "a-train.idx").unlink()
    else:
        (first.folder / DONE).write_text("[" * 10_000)
    with workspace(out, keys) as second:
        assert not second.done
        assert second.folder != first.folder
    assert names(tmp_path) == set()


def test_publishing_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with workspace(out, KEYS) as work:
        finish(work, "a")
        (work.folder / "dataset.json").write_text("{}")
        assert work.publish(out)
    assert names(tmp_path) == {"out"}
    assert not names(out) & {LOCK, DONE}
    with workspace(out, KEYS) as late:
        finish(late, "a")
        assert not late.publish(out)
    assert names(tmp_path) == {"out"}


def test_a_killed_preparation_is_gone_on_from(tmp_path: Path) -> None:
    script = (
        "import sys, os, signal; from pathlib import Path\n"
        "from moelstrom.launch.data import domain, prepare\n"
        "from moelstrom.launch.data.tokenizer import ByteTokenizer\n"
        "write = domain.DomainWriter.write\n"
        "def killed(self, source, advance):\n"
        "    if self.name == 'b': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return write(self, source, advance)\n"
        "if sys.argv[2] == 'kill': domain.DomainWriter.write = killed\n"
        "root = Path(sys.argv[1])\n"
        "prepare.prepare(root / 'out', {n: root / 'x.txt' for n in 'ab'}, ByteTokenizer())\n"
    )
    (tmp_path / "x.txt").write_text("some text " * 20)

    def run(how: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", script, str(tmp_path), how]
        return subprocess.run(command, capture_output=True, text=True, timeout=240)

    assert run("kill").returncode == -signal.SIGKILL
    [left] = names(tmp_path) - {"x.txt"}
    assert "a-train.bin" in names(tmp_path / left)
    again = run("finish")
    assert again.returncode == 0, again.stderr
    assert "a: finished before, kept in" in again.stderr
    assert names(tmp_path) == {"x.txt", "out"}
