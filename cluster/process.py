"""One worker subprocess: its streams, its event pipe, its exit. Knows nothing of Ray."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

from .events import EVENTS_FD, Alive, Error, Exit, LogLine, wire
from .spec import Event

KEPT_LINES = 200
"""Last lines of stderr that the exit event carries."""
MAX_LINE = 4000
"""Characters of an output line that are forwarded; the log file has all of it."""
MAX_READ = 65536
_BOUND_EXEC = Path(__file__).with_name("bound_exec.py")


class WorkerProcess:
    """A command in its own session that dies with this process.

    `on_event` is called from reader threads: the worker's events, its output as `LogLine`s, and
    last an `Exit`. `Alive` events only move `silent_s` and `stage`.
    """

    def __init__(
        self,
        command: tuple[str, ...],
        env: dict[str, str],
        *,
        cwd: str,
        log_path: Path | None,
        on_event: Callable[[Event], None],
    ) -> None:
        """Start it. Raises OSError when `cwd` is missing or a process cannot be made."""
        self._error: str | None = None
        self._tail: deque[str] = deque(maxlen=KEPT_LINES)
        self._on_event = on_event
        self._beat: float | None = None
        self.stage: str | None = None
        """What the last beat says that the worker does."""
        self._log = _open_log(log_path)
        self._process, events_fd = _spawn(command, env, cwd)
        assert self._process.stdout is not None and self._process.stderr is not None
        self._readers = [
            _thread(self._read_output, self._process.stdout, "stdout"),
            _thread(self._read_output, self._process.stderr, "stderr"),
            _thread(self._read_events, events_fd),
        ]
        self._waiter = _thread(self._wait)

    @property
    def pid(self) -> int:
        """Process id, which is also its session's and process group's."""
        return self._process.pid

    @property
    def silent_s(self) -> float | None:
        """Seconds since the last event or beat; None before the first."""
        return None if self._beat is None else time.monotonic() - self._beat

    def signal(self, number: int) -> None:
        """Signal the worker alone: its children are its own to end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self, timeout_s: float = 5.0) -> bool:
        """SIGKILL the whole session; True when the worker is gone within `timeout_s`."""
        if self._process.returncode is None:
            _kill_session(self.pid)
        self._waiter.join(timeout_s)
        return not self._waiter.is_alive()

    def _read_output(self, stream: IO[bytes], name: str) -> None:
        for raw in iter(lambda: stream.readline(MAX_READ), b""):
            self._write_log(raw)
            line = raw.decode(errors="replace").rstrip("\r\n")[:MAX_LINE]
            if name == "stderr" and line.strip():
                self._tail.append(line)
            self._on_event(wire(LogLine(time.time(), name, line)))

    def _write_log(self, raw: bytes) -> None:
        # A full disk must not stop the reading: the worker would block on its pipe.
        with contextlib.suppress(OSError):
            if self._log is not None:
                self._log.write(raw)

    def _read_events(self, fd: int) -> None:
        with os.fdopen(fd, "rb") as pipe:
            for line in pipe:
                self._take_event(line)

    def _take_event(self, line: bytes) -> None:
        self._beat = time.monotonic()
        try:
            event = json.loads(line)
            kind = event["kind"]
        except (ValueError, TypeError, KeyError):
            return  # A worker killed in the middle of a write leaves half a line.
        if kind == Error.kind:
            self._error = str(event.get("message", ""))
        if kind == Alive.kind:
            self.stage = event.get("stage")
        else:
            self._on_event(event)

    def _wait(self) -> None:
        # WNOWAIT keeps the pid ours until the session's remaining members are killed.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        ended = time.time()
        _kill_session(self.pid)
        code = self._process.wait()
        for reader in self._readers:
            reader.join(timeout=1.0)  # A process that left the session may hold a pipe open.
        self._on_event(wire(self._end(ended, code)))

    def _end(self, ended: float, code: int) -> Exit:
        stderr = tuple(self._tail)
        return Exit(ended, code, self._error or (stderr[-1] if stderr else ""), stderr)


def _spawn(
    command: tuple[str, ...], env: dict[str, str], cwd: str
) -> tuple["subprocess.Popen[bytes]", int]:
    read_fd, write_fd = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_BOUND_EXEC), str(os.getpid()), *command],
            env={**env, EVENTS_FD: str(write_fd)},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(write_fd,),
            start_new_session=True,
        )
    except OSError:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    return process, read_fd


def _open_log(path: Path | None) -> IO[bytes] | None:
    if path is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab", buffering=0)


def _kill_session(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _thread(target: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread
