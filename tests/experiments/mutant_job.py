"""One job of `mutate.py`: a copy of the tree, a warm process, what it learned of the tests."""

import compileall
import contextlib
import ctypes
import gc
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
HEAVY = """pytest_timeout _hypothesis_pytestplugin numpy torch.distributed torch._dynamo
torch.testing torch.utils.tensorboard triton
pydantic typer yaml rich.progress hypothesis safetensors.torch tokenizers psutil matplotlib.pyplot
ray transformers transformers.models.mixtral.modeling_mixtral
transformers.models.olmoe.modeling_olmoe transformers.models.qwen3_moe.modeling_qwen3_moe"""
"""Imported once; each mutant's process has them by a fork."""
LIMIT_S, LIMIT_FACTOR = 60.0, 6.0
"""Some errors never end: this much for all tests of a mutant, and this many times their budget."""
UNKNOWN_S = 1.5
"""What a file takes of whose tests nothing is known yet."""
STEADY_S = 1.0
"""A longer test may wait for something: it has to fail twice."""
SUBREAPER, DEATH_SIGNAL = 36, 1
"""prctl: what a test leaves behind becomes a child of this process, which ends with its parent."""


class Job:
    """Judges mutants one after another in its own copy of the tree."""

    def __init__(self, base: Path, budget_s: float, deep: bool) -> None:
        self._copy, self._scratch = base / "moelstrom", base / "scratch"
        self._budget_s, self._deep = budget_s, deep
        self._known: dict[str, float] = {}
        self._passed: set[str] = set()
        self._broken: list[str] = []
        copy_tree(self._copy)
        self._imports = Imports(self._copy)
        sys.path.insert(0, str(base))
        os.environ.update(PYTHONPATH=str(base), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
        ctypes.CDLL(None).prctl(SUBREAPER, 1)
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGTERM)
        signal.signal(signal.SIGTERM, _leave)
        for name in HEAVY.split():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        # Each fork then shares these objects, and its collections skip them.
        gc.freeze()

    def judge(self, mutant: Mutant) -> dict[str, Any]:
        """What became of one mutant: `outcome` found or survived, `by` which test."""
        tests = self._tests(mutant.path)
        file = self._copy / mutant.path
        good, unsteady = file.read_bytes(), list[str]()
        while True:
            with self._planted(file, good, mutant.apply(good)):
                answer = self._run(tests, unsteady)
                failed = next(iter(answer["failed"]), "")
                again = not failed or self._fails_again(failed, answer["ended"])
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
            # A quarter of the budget at most: the next files shall have their turn.
            left -= min(sum(known), self._budget_s / 4) if known else UNKNOWN_S
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
        """pytest's answer; where it took too long or died, the test that ran then has failed."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        budget_s = self._budget_s if budget_s is None else budget_s
        order = Order(self._known, [*self._broken, *skip], budget_s, self._deep, self._scratch)
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            with contextlib.suppress(BaseException):
                run_tests(self._copy, tests, order)
            os._exit(1)
        _wait(child, time.monotonic() + LIMIT_S + LIMIT_FACTOR * budget_s)
        end_children()
        try:
            answer = json.loads((self._scratch / "answer").read_text())
        except FileNotFoundError:
            running = self._scratch / "running"
            name = running.read_text() if running.exists() else tests[0]
            return {"failed": [name], "passed": {}, "ended": False}
        if answer["code"] not in (0, 1, 2, 5):
            raise RuntimeError((self._scratch / "log").read_text(errors="replace"))
        self._passed |= answer["passed"].keys()
        for name, seconds in answer["passed"].items():
            self._known[name] = min(seconds, self._known.get(name, seconds))
        return {**answer, "ended": True}

    def _fails_again(self, test: str, ended: bool) -> bool:
        """Whether a test that may have waited for something fails a second time."""
        if not ended or "::" not in test or self._known.get(test, 9.0) < STEADY_S:
            return True
        return bool(self._run([test], [], self._enough(test))["failed"])

    def _enough(self, test: str) -> float:
        return max(10.0, 2 * self._known.get(test, 0.0))

    def _is_sound(self, test: str) -> bool:
        """Whether this test, or the import of its file, passes where nothing is planted."""
        passed = (n for n in self._passed if n == test or n.startswith(f"{test}::"))
        if any(passed):
            return True
        # Nothing runs where there is no budget: the file is only imported.
        budget_s = self._enough(test) if "::" in test else 0.0
        return not self._run([test], [], budget_s)["failed"]


def _wait(child: int, until: float) -> None:
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.02)


def end_children() -> None:
    """Everything that this process started, also by way of others, and only that."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0)[0]:
            pass


def _leave(*_: Any) -> None:
    end_children()
    raise SystemExit(1)


def copy_tree(to: Path) -> None:
    """The working tree's files without what git ignores, compiled."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    compileall.compile_dir(to, quiet=2)
