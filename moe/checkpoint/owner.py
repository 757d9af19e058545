"""Which process writes, told so that another one can find out whether it still lives."""

import json
import os
import pwd
import secrets
import socket
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

RUN_VARIABLE = "MOELSTROM_RUN"
"""Names one command's run to all its workers, over their restarts."""
GENERATION_VARIABLES = "MOELSTROM_GENERATION", "MOELSTROM_RESTART"
"""The first that is set numbers the groups of workers that the command has started; a later one has
the larger number."""


@dataclass(frozen=True)
class Owner:
    """A process of one boot of one machine, and the run and group of workers it belongs to."""

    run: str
    generation: int
    user: str
    host: str
    machine: str
    boot: str
    """The kernel's random id of this boot; containers of one machine share it."""
    pids: str
    """The process namespace that `pid` counts in."""
    pid: int
    started: int
    """When, in clock ticks since the boot: a number used again is another process."""

    @classmethod
    def here(cls) -> "Owner":
        """This process, as its environment says: in a run and group, or as a run of its own."""
        return cls(
            run=os.environ.get(RUN_VARIABLE) or _own_run(os.getpid()),
            generation=_generation(),
            user=_user(),
            host=socket.gethostname(),
            machine=_text("/etc/machine-id"),
            boot=_text("/proc/sys/kernel/random/boot_id"),
            pids=_link("/proc/self/ns/pid"),
            pid=os.getpid(),
            started=_started(os.getpid()) or 0,
        )

    @classmethod
    def parse(cls, text: bytes) -> "Owner | None":
        """What `dump` wrote; None for anything else."""
        try:
            data = json.loads(text)
            kinds = {field.name: field.type for field in fields(cls)}
            if {name: type(value) for name, value in data.items()} != kinds:
                return None
            return cls(**data)
        except (ValueError, AttributeError, RecursionError):
            return None

    def dump(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    def is_same_process(self, other: "Owner") -> bool:
        """Whether both are one process."""
        mine = self.boot, self.pids, self.pid, self.started
        return mine == (other.boot, other.pids, other.pid, other.started)

    def lives(self) -> bool | None:
        """Whether the process still exists; None where this machine cannot know."""
        if self.boot == _text("/proc/sys/kernel/random/boot_id"):
            seen = self.pids == _link("/proc/self/ns/pid")
            return _exists(self.pid, self.started) if seen else None
        rebooted = (self.host, self.machine) == (socket.gethostname(), _text("/etc/machine-id"))
        return False if rebooted and self.machine else None

    def __str__(self) -> str:
        """For the operator who has to find it."""
        return f"process {self.pid} of user {self.user} on host {self.host}"


def _generation() -> int:
    numbers = (os.environ.get(name, "") for name in GENERATION_VARIABLES)
    return next((int(number) for number in numbers if number.isdecimal()), 0)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


@cache
def _own_run(pid: int) -> str:
    return secrets.token_hex(8)


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""


def _exists(pid: int, started: int) -> bool:
    found = _started(pid)
    if found is None:
        # /proc may hide the processes of other users.
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
        except (ProcessLookupError, OverflowError):
            pass
    return found == started


def _started(pid: int) -> int | None:
    """The process's start in clock ticks since the boot; None if there is none, or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The command's name, in parentheses, may hold anything.
    words = text.rpartition(")")[2].split()
    return None if words[0] in "ZX" else int(words[19])
