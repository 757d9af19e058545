import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from queue import Queue

import psutil

from moelstrom.cluster.process import WorkerProcess
from moelstrom.cluster.spec import Event


def start(code: str, cwd: Path, events: "Queue[Event]") -> WorkerProcess:
    command = (sys.executable, "-c", code)
    log = cwd / "log" / "rank-0.log"
    return WorkerProcess(command, dict(os.environ), cwd=str(cwd), log_path=log, on_event=events.put)


def until_exit(events: "Queue[Event]") -> list[Event]:
    found: list[Event] = []
    while not found or found[-1]["kind"] != "exit":
        found.append(events.get(timeout=20))
    return found


def gone(pid: int, timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_output_and_exit(tmp_path: Path) -> None:
    events: Queue[Event] = Queue()
    code = "import sys; print('out'); print('bad', file=sys.stderr); sys.exit(3)"
    start(code, tmp_path, events)
    found = until_exit(events)
    logs = {(event["stream"], event["line"]) for event in found if event["kind"] == "log"}
    assert logs == {("stdout", "out"), ("stderr", "bad")}
    assert (found[-1]["code"], found[-1]["message"], found[-1]["stderr"]) == (3, "bad", ["bad"])
    assert sorted((tmp_path / "log" / "rank-0.log").read_text().split()) == ["bad", "out"]


def test_a_missing_command_is_a_users_mistake(tmp_path: Path) -> None:
    events: Queue[Event] = Queue()
    WorkerProcess(("no-such-program",), {}, cwd=str(tmp_path), log_path=None, on_event=events.put)
    last = until_exit(events)[-1]
    assert last["code"] == 2
    assert "cannot run no-such-program" in last["message"]


def test_kill_takes_the_workers_children_too(tmp_path: Path) -> None:
    events: Queue[Event] = Queue()
    code = (
        "import subprocess, time\n"
        "print(subprocess.Popen(['sleep', '600']).pid, flush=True)\n"
        "time.sleep(600)"
    )
    process = start(code, tmp_path, events)
    child = int(events.get(timeout=20)["line"])
    assert process.kill()
    assert until_exit(events)[-1]["code"] == -signal.SIGKILL
    assert gone(child)


def test_interrupts_reach_the_worker_when_the_parent_blocks_them(tmp_path: Path) -> None:
    events: Queue[Event] = Queue()
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        start(code, tmp_path, events)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert until_exit(events)[-1]["code"] == -signal.SIGINT


def test_the_worker_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, time\n"
        "from moelstrom.cluster.process import WorkerProcess\n"
        "p = WorkerProcess(('sleep', '600'), dict(os.environ), cwd='/', log_path=None,"
        " on_event=print)\n"
        "time.sleep(0.5)\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert psutil.Process(worker).name() == "sleep"
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(worker)
