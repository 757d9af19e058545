"""A class name means one thing in the whole package."""

import ast
from collections import defaultdict
from pathlib import Path

import moelstrom

ROOT = Path(moelstrom.__file__).parent
FOLDERS = ("cluster", "collectives_bench", "kernels", "launch", "moe")


def test_class_names_mean_one_thing() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
            for name in (name for name in classes if not name.startswith("_")):
                found[name].add(str(path.relative_to(ROOT)))
    assert len(found) > 300
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}
