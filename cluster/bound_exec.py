"""Runs a command that dies with its parent: python bound_exec.py PARENT_PID COMMAND...

A separate program because the parent, a Ray worker, has threads: Python code between fork and
exec could deadlock there. Standard library only; Linux.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Bind to the parent, undo Ray's signal mask (it blocks SIGINT), become the command."""
    parent, command = int(arguments[0]), arguments[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)  # It died before the call above could bind us to it.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(2)  # A user's mistake: a restart would meet it again.


if __name__ == "__main__":
    main(sys.argv[1:])
