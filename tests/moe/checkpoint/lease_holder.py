"""A process that holds leases and tells of it: reads commands on stdin, answers on stdout.

`take FOLDER NAME PATIENCE`, `check`, `release`: each answers with the lease's number, or the error.
"""

import sys
from pathlib import Path

from moelstrom import UserError
from moelstrom.moe.checkpoint.lease import Lease, take


def answer(words: list[str], held: list[Lease]) -> str:
    if words[0] == "take":
        held[:] = [take(Path(words[1]), words[2], "output", float(words[3]))]
    else:
        getattr(held[0], words[0])()
    return str(held[0].number)


def main() -> None:
    held: list[Lease] = []
    for line in sys.stdin:
        try:
            print(answer(line.split(), held), flush=True)
        except UserError as error:
            print(f"{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
