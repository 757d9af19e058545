import json
import os
import subprocess
import sys
import threading

import pytest

from moelstrom.cluster.events import EVENTS_FD, EventWriter


def test_without_a_pipe_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EVENTS_FD, raising=False)
    EventWriter.from_env().emit("step", step=1)


def test_lines_of_many_threads_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    read_fd, write_fd = os.pipe()
    monkeypatch.setenv(EVENTS_FD, str(write_fd))
    writer = EventWriter.from_env()
    assert EVENTS_FD not in os.environ  # The worker's own children must not use it.

    def emit(thread: int) -> None:
        for step in range(20):
            writer.emit("step", step=step, thread=thread, text="x" * 500)

    threads = [threading.Thread(target=emit, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    lines: list[dict[str, object]] = []
    with os.fdopen(read_fd, "rb") as pipe:
        while sum(line["kind"] == "step" for line in lines) < 80:
            lines.append(json.loads(pipe.readline()))
    for thread in threads:
        thread.join()
    for number in range(4):
        assert [line["step"] for line in lines if line.get("thread") == number] == list(range(20))
    assert any(line["kind"] == "alive" for line in lines)


def test_a_broken_pipe_is_survived() -> None:
    read_fd, write_fd = os.pipe()
    writer = EventWriter(write_fd)
    os.close(read_fd)
    for _ in range(3):
        writer.emit("step", step=1)
    os.close(write_fd)


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, moelstrom.cluster.events\n"
        "assert not {'ray', 'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_beats_carry_the_stage() -> None:
    read_fd, write_fd = os.pipe()
    writer = EventWriter(write_fd)
    writer.stage("wait", 7)
    with os.fdopen(read_fd, "rb") as pipe:
        beats = [json.loads(pipe.readline()) for _ in range(3)]
    assert {beat["kind"] for beat in beats} == {"alive"}
    assert (beats[-1]["stage"], beats[-1]["step"]) == ("wait", 7)
    assert 0.4 < beats[-1]["stage_s"] < 5
