"""Records outlive a disk that refuses them: in order, whole, and with a word for what is lost."""

import errno
from pathlib import Path
from typing import Any

import pytest

from moelstrom.launch.train import patient
from moelstrom.launch.train.log import LOG_NAME, RunLog
from moelstrom.launch.train.patient import PatientFile
from moelstrom.launch.train.records import NoteRecord, Record, StepRecord


class Disk:
    """Takes as many bytes as it has room for, then says that it is full."""

    def __init__(self, room: int) -> None:
        self.room, self.taken = room, b""

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = data[: self.room]
        self.room -= len(part)
        self.taken += part
        return len(part)

    def close(self) -> None:
        pass


def on(disk: Disk) -> PatientFile:
    file = PatientFile(Path("metrics.jsonl"))
    file._file = disk  # type: ignore[assignment]
    return file


def test_a_line_cut_by_a_full_disk_is_ended_later() -> None:
    disk = Disk(room=7)
    file = on(disk)
    said = [file.write(line) for line in ("first", "second", "third")]
    assert disk.taken == b"first\ns" and said[0] == said[2] == ""
    assert "No space left on device; training goes on" in said[1]
    disk.room = 100
    assert "is written again" in file.write("fourth") and file.problem == ""
    assert disk.taken == b"first\nsecond\nthird\nfourth\n" and file.close() == ""


def test_beyond_the_bound_the_oldest_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient, "MOST_WAITING", 3)
    disk = Disk(room=1)
    file = on(disk)
    for number in range(6):
        file.write(f"{number}a")
    disk.room = 100
    assert "is written again, 4 records are lost" in file.write("6a")
    assert disk.taken == b"0a\n5a\n6a\n"
    disk.room = 0
    file.write("7a")
    assert "1 records are lost (No space left on device)" in file.close()


def test_a_full_disk_never_ends_a_run(tmp_path: Path) -> None:
    """The log on a device that is always full, the curves in a folder that is a file."""
    (tmp_path / LOG_NAME).symlink_to("/dev/full")
    (tmp_path / "tensorboard").write_text("")
    heard: list[Any] = []
    log = RunLog(tmp_path, [heard.append])
    steps: list[Record] = [StepRecord(step=n, loss=1.0) for n in (1, 2)]
    for record in steps:
        log(record)
    log.close()
    assert [record for record in heard if isinstance(record, StepRecord)] == steps
    waits, curves, lost = [r.message for r in heard if isinstance(r, NoteRecord)]
    assert "No space left on device; training goes on" in waits and "2 records are lost" in lost
    assert "tensorboard: " in curves and "the curves end here, training goes on" in curves
