"""One job of `mutate.py`: a copy of the tree, a warm process, what it learned of the tests."""

import compileall
import contextlib
import ctypes
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from mutant_tests import Imports, Order, run_tests
from mutants import Mutant

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torch.distributed", "numpy", "pydantic", "typer", "yaml", "rich.progress")
HEAVY += ("hypothesis", "safetensors.torch", "tokenizers", "psutil", "transformers", "matplotlib")
"""Imported once; each mutant's process has them by a fork."""
TOO_LONG = "time limit"
LIMIT_S = 240.0
"""For all tests of one mutant: some errors never end."""
UNKNOWN_S = 3.0
"""What a file takes of whose tests nothing is known yet."""
STEADY_S = 1.0
"""A longer test may wait for something: it has to fail twice."""
SUBREAPER = 36
"""prctl: what a test leaves behind becomes a child of this process."""


class Job:
    """Judges mutants one after another in its own copy of the tree."""

    def __init__(self, base: Path, budget_s: float, slow: bool) -> None:
        self._copy, self._scratch = base / "moelstrom", base / "scratch"
        self._budget_s, self._slow = budget_s, slow
        self._known: dict[str, float] = {}
        self._broken: list[str] = []
        copy_tree(self._copy)
        self._imports = Imports(self._copy)
        sys.path.insert(0, str(base))
        os.environ.update(PYTHONPATH=str(base), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
        ctypes.CDLL(None).prctl(SUBREAPER, 1)
        for name in HEAVY:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)

    def judge(self, mutant: Mutant) -> dict[str, Any]:
        """What became of one mutant: `outcome` found or survived, `by` which test."""
        tests = self._tests(mutant.path)
        file = self._copy / mutant.path
        good, unsteady = file.read_bytes(), list[str]()
        while True:
            with self._planted(file, good, mutant.apply(good)):
                answer = self._run(tests, unsteady)
                failed = next(iter(answer["failed"]), "")
                again = not failed or self._fails_again(failed)
            if not failed:
                return {"outcome": "survived", "by": "", "tests": len(answer["passed"])}
            if again and self._is_sound(failed):
                return {"outcome": "found", "by": failed, "tests": len(answer["passed"])}
            (self._broken if again else unsteady).append(failed)

    def _tests(self, path: str) -> list[str]:
        """The nearest tests, as many files as the budget allows."""
        chosen: list[str] = []
        left = self._budget_s
        for test in self._imports.tests(path):
            known = [s for node, s in self._known.items() if node.startswith(f"{test}::")]
            chosen.append(test)
            left -= sum(known) if known else UNKNOWN_S
            if left <= 0:
                break
        return chosen

    @contextlib.contextmanager
    def _planted(self, file: Path, good: bytes, bad: bytes) -> Iterator[None]:
        # Python tells an old compiled file by the source's second and size: too coarse here.
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            compiled.unlink()
        file.write_bytes(bad)
        try:
            yield
        finally:
            file.write_bytes(good)

    def _run(self, tests: list[str], skip: list[str], budget_s: float | None = None) -> Any:
        """pytest's answer. Where it took too long or died, the failure is `TOO_LONG`."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        budget_s = self._budget_s if budget_s is None else budget_s
        order = Order(self._known, [*self._broken, *skip], budget_s)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                run_tests(self._copy, tests, order, self._slow, self._scratch)
            os._exit(1)
        _wait(child, time.monotonic() + LIMIT_S)
        _end_children()
        try:
            answer = json.loads((self._scratch / "answer").read_text())
        except FileNotFoundError:
            return {"failed": [TOO_LONG], "passed": {}}
        if answer["code"] not in (0, 1, 2, 5):
            raise RuntimeError((self._scratch / "log").read_text(errors="replace"))
        for name, seconds in answer["passed"].items():
            self._known[name] = min(seconds, self._known.get(name, seconds))
        return answer

    def _fails_again(self, test: str) -> bool:
        """Whether a test that may wait for something fails a second time."""
        if test == TOO_LONG or "::" not in test or self._known.get(test, 9.0) < STEADY_S:
            return True
        return bool(self._run([test], [])["failed"])

    def _is_sound(self, test: str) -> bool:
        """Whether this test, or the import of its file, passes where nothing is planted."""
        passed = (name for name in self._known if name == test or name.startswith(f"{test}::"))
        if test == TOO_LONG or any(passed):
            return True
        # Nothing runs where there is no budget: the file is only imported.
        budget_s = None if "::" in test else 0.0
        return not self._run([test], [], budget_s)["failed"]


def _wait(child: int, until: float) -> None:
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.02)


def _end_children() -> None:
    """Everything that this process started, also by way of others, and only that."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0)[0]:
            pass


def copy_tree(to: Path) -> None:
    """The working tree's files without what git ignores, compiled."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    compileall.compile_dir(to, quiet=2)
