"""Which tests mirror a module, and how they run in a process of their own."""

import ast
import functools
import json
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import Phase, settings


class Imports:
    """Who imports whom, over the package and the tests, also inside functions."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tests = sorted(str(p.relative_to(root)) for p in root.glob("tests/**/test_*.py"))

    @functools.cache  # noqa: B019 (one object for the whole run)
    def _of(self, file: str) -> tuple[str, ...]:
        found = []
        for node in ast.walk(ast.parse((self._root / file).read_text())):
            if isinstance(node, ast.ImportFrom):
                base = self._base(file, node)
                found += [base, *(f"{base}/{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                found += [alias.name.replace(".", "/") for alias in node.names]
        return tuple(dict.fromkeys(f for name in found for f in self._files(name)))

    def _base(self, file: str, node: ast.ImportFrom) -> str:
        name = (node.module or "").replace(".", "/")
        if not node.level:
            return name.removeprefix("moelstrom").removeprefix("/")
        return str(Path(*Path(file).parts[: -node.level]) / name)

    def _files(self, name: str) -> Iterator[str]:
        for path in (f"{name}.py", f"{name}/__init__.py", f"tests/{name}.py"):
            if (self._root / path).is_file():
                yield path

    @functools.cache  # noqa: B019
    def distances(self, test: str) -> dict[str, int]:
        """How many imports lie between a test and each file that it reaches."""
        found, waiting = {test: 0}, deque([test])
        while waiting:
            file = waiting.popleft()
            for other in self._of(file):
                if other not in found:
                    found[other] = found[file] + 1
                    waiting.append(other)
        return found

    def tests(self, path: str) -> list[str]:
        """The folder's tests that reach the module, nearest first."""
        module = Path(path)
        names = {f"test_{module.stem}.py", f"test_{module.parent.name}.py"}
        folder = f"tests/{module.parts[0]}/"
        ranked = []
        for test in self._tests:
            reached = self.distances(test)
            if test.startswith(folder) and path in reached:
                mirror = Path(test).name in names and str(module.parent) in test
                ranked.append((not mirror, reached[path], (self._root / test).stat().st_size, test))
        return [test for *_, test in sorted(ranked)]


@dataclass(eq=False)
class Order:
    """A pytest plugin: each file's fastest test first, no more than the budget, what passed."""

    known: dict[str, float]
    skip: list[str]
    budget_s: float
    passed: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    _spent: Counter[str] = field(default_factory=Counter)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        files = list(dict.fromkeys(item.nodeid.split("::")[0] for item in items))
        cost = {item.nodeid: self.known.get(item.nodeid, 0.3) for item in items}
        items.sort(key=lambda item: (files.index(item.nodeid.split("::")[0]), cost[item.nodeid]))
        kept, spent = [], 0.0
        for item in items:
            if item.nodeid not in self.skip and spent + cost[item.nodeid] <= self.budget_s:
                kept.append(item)
                spent += cost[item.nodeid]
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._spent[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "teardown":
            self.passed[report.nodeid] = self._spent[report.nodeid]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def run_tests(copy: Path, files: list[str], order: Order, slow: bool, scratch: Path) -> None:
    """In a process of its own; leaves `answer` in `scratch`."""
    os.setsid()
    log = os.open(scratch / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.chdir(copy)
    tempfile.tempdir = os.environ["TMPDIR"] = str(scratch)
    # One example that fails is enough: the search for a smaller one can take minutes.
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", phases=phases, database=None, deadline=None)
    settings.load_profile("mutants")
    options = ["-x", "-q", "--timeout=200", "--hypothesis-seed=0", f"--basetemp={scratch}/pytest"]
    options += ["-p", "no:cacheprovider", "-p", "no:xdist"] + ([] if slow else ["-m", "not slow"])
    code = pytest.main([*options, *files], plugins=[order])
    answer = {"code": int(code), "failed": order.failed, "passed": order.passed}
    (scratch / "answer").write_text(json.dumps(answer))
    os._exit(0)
