"""A class name of the kernels and the benchmarks means one thing in the whole package."""

import ast
from collections import defaultdict
from pathlib import Path

import moelstrom

ROOT = Path(moelstrom.__file__).parent
FOLDERS = ("cluster", "collectives_bench", "kernels", "launch", "moe")
OURS = ("collectives_bench", "kernels", "launch/bench")
KNOWN = {"Target"}
"""A GPU and a layout to reshape to: it goes from here when one of them is renamed."""


def test_class_names_mean_one_thing() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
            for name in classes:
                found[name].add(str(path.relative_to(ROOT)))
    assert len(found) > 300
    doubled = {name for name, paths in found.items() if len(paths) > 1}
    ours = {name for name in doubled if any(path.startswith(OURS) for path in found[name])}
    assert {name: found[name] for name in ours} == {name: found[name] for name in KNOWN}
