"""Folders that claim, hide or ask for something are refused at once, and cost nothing.

All cases run in one process, which a case that hangs would end: then the next process goes on.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile_folders import CASES

RSS_MB = 250
"""Most memory that one case may add: the largest pickle here has a megabyte."""
CPU_S = 10.0
"""Most time that one case may take; none should take a second."""
HANGS_S = 100
"""Most time that one case may wait."""
CHILD = """
import faulthandler, json, resource, shutil, signal, sys, time
from pathlib import Path
import foreign_folders, hostile_folders
from moelstrom import UserError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

root, cpu_s, hangs_s = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (16 << 30, 16 << 30))
faulthandler.register(signal.SIGPROF, chain=True)
for kind, write in foreign_folders.WRITERS.items():
    write(root / kind)
    foreign_folders.read_all(kind, root / kind)
for name in sys.stdin.read().splitlines():
    kind, spoil, _ = hostile_folders.CASES[name]
    place = root / f"{time.time_ns()}"
    shutil.copytree(root / kind, place / "folder")
    spoil(place / "folder")
    print(json.dumps({"started": name}), flush=True)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    faulthandler.dump_traceback_later(hangs_s, exit=True)
    before, found = peak(), "read"
    try:
        foreign_folders.read_all(kind, place / "folder")
    except UserError as error:
        found = f"UserError: {error}"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"[:500]
    mb = peak() - before
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(json.dumps({"ended": name, "found": found, "mb": mb}), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of every case."""
    found, left = dict[str, dict[str, Any]](), [*CASES]
    path = {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    while left:
        root = tmp_path_factory.mktemp("hostile")
        command = [sys.executable, "-W", "ignore", "-c", CHILD, str(root), str(CPU_S), str(HANGS_S)]
        ended = subprocess.run(
            command, input="\n".join(left), capture_output=True, text=True, env=path, check=False
        )
        lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
        assert lines, ended.stderr
        found |= {line["ended"]: line for line in lines if "ended" in line}
        if "started" in lines[-1]:
            name = lines[-1]["started"]
            found[name] = {"found": f"died or hung: {ended.stderr[-800:]}", "mb": 0}
        left = [name for name in left if name not in found]
    return found


@pytest.mark.parametrize("name", CASES)
def test_is_refused_at_once(outcomes: dict[str, dict[str, Any]], name: str) -> None:
    outcome, says = outcomes[name], CASES[name][2]
    assert outcome["found"].startswith("UserError: ")
    assert re.search(says, outcome["found"]), outcome["found"]
    assert "\n" not in outcome["found"] and len(outcome["found"]) < 2000
    assert outcome["mb"] < RSS_MB, outcome
