"""Which tests mirror a module, and how they run in a process of their own."""

import ast
import functools
import inspect
import json
import os
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import Phase, settings

PLUGINS = ("pytest_timeout", "_hypothesis_pytestplugin")
"""All that our tests need: others that are installed would only cost time."""
STARTS = (
    "run_ranks",
    "run_worker",
    "run_here",
    "subprocess",
    "Popen",
    "ray_session",
    "launch(",
    "run_group",
)
LONG_S = 4.0
SHORT_S = 0.05
AT_ONCE = 6
FAR = 100


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
        """The folder's tests that reach the module: of its own name first, then the nearest in the
        tree, then by the fewest imports in between."""
        module = Path(path)
        names = {f"test_{module.stem}.py", f"test_{module.parent.name}.py"}
        home = Path("tests") / module.parent
        ranked = []
        for test in self._tests:
            reached, place = self.distances(test), Path(test).parent
            if place.parts[:2] == home.parts[:2]:
                shared = len(os.path.commonpath([home, place]).split("/"))
                apart = len(home.parts) + len(place.parts) - 2 * shared
                mirror = Path(test).name in names and home.is_relative_to(place)
                # A registry may choose the module by its name: its own folder's tests always count.
                if path in reached or not apart:
                    ranked.append((not mirror, apart, reached.get(path, FAR), test))
        return [test for *_, test in sorted(ranked)]


@dataclass(eq=False)
class Order:
    """A pytest plugin: short tests before long ones, within the budget, and what passed."""

    known: dict[str, float]
    skip: list[str]
    budget_s: float
    long: bool
    scratch: Path
    passed: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    _spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        files = list(dict.fromkeys(item.path for item in items))
        cost = {item.nodeid: self.known.get(item.nodeid) or _guess(item) for item in items}
        items.sort(key=lambda item: cost[item.nodeid])
        seen, place = Counter[Path](), {}
        for item in items:
            # Some of every file before all of the first: many small tests are often alike.
            turn = seen[item.path] // AT_ONCE
            place[item.nodeid] = (cost[item.nodeid] >= LONG_S, turn, files.index(item.path))
            seen[item.path] += 1
        items.sort(key=lambda item: place[item.nodeid])
        kept, spent = [], 0.0
        for item in items:
            seconds = cost[item.nodeid]
            if item.nodeid in self.skip or (seconds >= LONG_S and not self.long):
                continue
            if spent + seconds <= self.budget_s:
                kept.append(item)
                spent += seconds
        items[:] = kept

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.scratch.joinpath("running").write_text(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._spent[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "teardown":
            self.passed[report.nodeid] = self._spent[report.nodeid]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def _guess(item: pytest.Item) -> float:
    """Seconds of a test that never ran here: those that start processes take some."""
    fixtures = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009
    functions = [getattr(item, "function", Order), *(f[-1].func for f in fixtures)]
    source = "".join(inspect.getsource(f) for f in functions if "moelstrom" in inspect.getfile(f))
    return LONG_S if any(word in source for word in STARTS) else SHORT_S


def run_tests(copy: Path, files: list[str], order: Order) -> None:
    """In a process of its own; leaves `answer` in the order's scratch folder."""
    scratch = order.scratch
    log = os.open(scratch / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.chdir(copy)
    tempfile.tempdir = os.environ["TMPDIR"] = str(scratch)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    # One example that fails is enough: the search for a smaller one can take minutes.
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", phases=phases, database=None, deadline=None)
    settings.load_profile("mutants")
    options = ["-x", "-q", "--timeout=200", "--hypothesis-seed=0", f"--basetemp={scratch}/pytest"]
    options += ["-p", "no:cacheprovider", *(f"-p{name}" for name in PLUGINS)]
    options += [] if order.long else ["-m", "not slow"]
    code = pytest.main([*options, *files], plugins=[order])
    answer = {"code": int(code), "failed": order.failed, "passed": order.passed}
    (scratch / "answer").write_text(json.dumps(answer))
    os._exit(0)
