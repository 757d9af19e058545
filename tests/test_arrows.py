"""Imports only run down, and never in a circle: read from the sources, every import counted.

A circle between files is a trap when they load, also where an import inside a function hides it, so
those count. Between neighbours in a folder, imports for types count as well: for a reader they tie
the two together just the same.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import moelstrom

NAME = moelstrom.__name__
ROOT = Path(moelstrom.__file__).parent
DOWN = {
    "launch": {"cluster", "collectives_bench", "moe", "kernels"},
    "moe": {"kernels"},
    "collectives_bench": {"kernels"},
    "cluster": set(),
    "kernels": set(),
}
"""What each top-level folder may import beside `moelstrom/__init__.py`."""
KNOWN_FILES: set[tuple[str, str]] = set()
KNOWN_NEIGHBOURS: set[tuple[str, str]] = set()
"""Arrows that still close a circle. They only become fewer: what is mended must go from here."""

Module = tuple[str, ...]
Graph = Mapping[Module, set[Module]]


def sources(root: Path) -> dict[Module, Path]:
    """Every module by its path below `root`; a package's `__init__.py` has the folder's."""
    found = {}
    for folder in sorted(path for path in root.iterdir() if path.name in DOWN):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[parts[:-1] if parts[-1] == "__init__" else parts] = path
    return found


def graph(modules: Mapping[Module, Path], with_types: bool) -> dict[Module, set[Module]]:
    """What every file imports of the package, itself and the root left out."""
    found = {}
    for module, path in modules.items():
        names = imported(path, module, with_types)
        found[module] = {_file(name, modules) for name in names} - {(), module}
    return found


def imported(path: Path, module: Module, with_types: bool) -> Iterator[Module]:
    """The dotted names below the package that a file imports, anywhere in it."""
    package = module if path.name == "__init__.py" else module[:-1]
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse + node.body * with_types
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            words = [tuple(alias.name.split(".")) for alias in node.names]
            yield from (name[1:] for name in words if name[0] == NAME)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            yield from () if base is None else ((*base, alias.name) for alias in node.names)


def _base(node: ast.ImportFrom, package: Module) -> Module | None:
    """What `from ... import` names, below the package; None for other libraries."""
    words = tuple(node.module.split(".")) if node.module else ()
    if node.level:
        return (*package[: len(package) - node.level + 1], *words)
    return words[1:] if words[:1] == (NAME,) else None


def _file(name: Module, modules: Mapping[Module, Path]) -> Module:
    """The module that a dotted name lies in: its longest part that is a file."""
    while name and name not in modules:
        name = name[:-1]
    return name


def neighbours(files: Graph) -> dict[Module, set[Module]]:
    """Arrows between the folders and files of one folder: where the paths of two files part."""
    found: dict[Module, set[Module]] = {}
    for module, targets in files.items():
        for target in targets:
            pairs = enumerate(zip(module, target, strict=False))
            at = next((i for i, (ours, theirs) in pairs if ours != theirs), None)
            if at is not None:
                found.setdefault(module[: at + 1], set()).add(target[: at + 1])
    return found


def closing(arrows: Graph, known: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that lie on a circle once the known ones are cut."""
    cut = {m: {t for t in ts if (_dotted(m), _dotted(t)) not in known} for m, ts in arrows.items()}
    reach = {m: _reached(m, cut) for m in cut}
    found = [(m, t) for m, ts in cut.items() for t in ts if m in reach.get(t, ())]
    return {(_dotted(m), _dotted(t)) for m, t in found}


def mended(arrows: Graph, known: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Known arrows that are gone, or close no circle any more."""
    return known - closing(arrows, set())


def _reached(start: Module, arrows: Graph) -> set[Module]:
    found: set[Module] = set()
    todo = [*arrows.get(start, ())]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += arrows.get(node, ())
    return found


def _dotted(module: Module) -> str:
    return ".".join(module)


def test_arrows_between_top_level_folders_only_run_down() -> None:
    found = graph(sources(ROOT), with_types=True)
    assert {module[0] for module in found} == set(DOWN)
    up = [
        f"{_dotted(module)} -> {_dotted(target)}"
        for module, targets in found.items()
        for target in targets
        if target[0] != module[0] and target[0] not in DOWN[module[0]]
    ]
    assert up == []


@pytest.mark.parametrize("level", ["files", "neighbours"])
def test_no_imports_in_a_circle(level: str) -> None:
    if level == "files":
        arrows, known = graph(sources(ROOT), with_types=False), KNOWN_FILES
    else:
        arrows, known = neighbours(graph(sources(ROOT), with_types=True)), KNOWN_NEIGHBOURS
    assert closing(arrows, known) == set()
    assert mended(arrows, known) == set(), "take these out of the known ones"


def test_hidden_circles_are_found(tmp_path: Path) -> None:
    """Inside a function, for types alone, between folders whose files make no circle."""
    files = {
        "moe/__init__.py": "",
        "moe/a.py": "from .b import x",
        "moe/b.py": "def f():\n    from . import a",
        "moe/types.py": "if TYPE_CHECKING:\n    from .user import x",
        "moe/user.py": "from moelstrom.moe.types import x\nimport numpy.moe",
        "moe/one/p.py": "from ..two.q import x",
        "moe/two/q.py": "",
        "moe/two/r.py": "import moelstrom.moe.one.s",
        "moe/one/s.py": "from ...kernels import y",
        "kernels/__init__.py": "from .. import UserError",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    modules = sources(tmp_path)
    plain, typed = graph(modules, with_types=False), graph(modules, with_types=True)
    assert plain["moe", "one", "s"] == {("kernels",)} and plain["moe", "user"] == {("moe", "types")}
    assert closing(plain, set()) == {("moe.a", "moe.b"), ("moe.b", "moe.a")}
    between = neighbours(typed)
    known = {("moe.a", "moe.b"), ("moe.one", "moe.two"), ("moe.types", "moe.user")}
    assert closing(between, set()) == known | {(theirs, ours) for ours, theirs in known}
    assert closing(between, known) == set() and mended(between, known) == set()
    gone = {("moe.one", "kernels"), ("moe.a", "moe.one")}
    assert mended(between, known | gone) == gone
