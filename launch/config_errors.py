"""Turning what a user wrote into values, or into one clear message."""

import difflib
import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from .. import UserError

FIXES = {
    "int_type": "give a whole number",
    "int_parsing": "give a whole number",
    "int_parsing_size": "give a smaller whole number",
    "int_from_float": "give a whole number",
    "float_type": "give a number",
    "float_parsing": "give a number",
    "finite_number": "give a finite number",
    "bool_type": "give true or false",
    "bool_parsing": "give true or false",
    "string_type": "give text, in quotes where YAML would take it for something else",
    "string_unicode": "give text of whole characters",
    "string_pattern_mismatch": "give letters, digits, `_`, `.` and `-`, first a letter",
    "literal_error": "give {expected}",
    "tuple_type": "give a list, such as [a, b]",
    "too_short": "give at least {min_length} in the list",
    "too_long": "give at most {max_length} in the list",
    "dict_type": "give `name: value` lines below it",
    "model_type": "give `field: value` lines below it, or drop it",
    "greater_than": "give more than {gt}",
    "greater_than_equal": "give {ge} or more",
    "less_than": "give less than {lt}",
    "less_than_equal": "give {le} or less",
}
"""What to do about pydantic's kinds of error; its own message stands in for others."""

PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
MAX_DIGITS = 18

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 2, 60, 60


class _Loader(yaml.SafeLoader):
    """YAML of mappings, lists, text, numbers, booleans and null: a date is text, and the other
    types of YAML are errors, as is a key that comes twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [pair for pair in pairs if not pair[0].endswith(":timestamp")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in PLAIN
    }

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping as written, each key once."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"`{plain(key.value)}` comes twice"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return node


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int | str:
    """An integer, but the text of one that no field can hold: its field's check names it."""
    return loader.construct_yaml_int(node) if len(node.value) <= MAX_DIGITS else node.value


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError names the file and line."""
    name = plain(str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{name}: no such file; give a YAML file or a recipe's name") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}); give a YAML file") from None
    except ValueError as error:
        raise UserError(f"{name}: cannot be read ({error}); give a file of UTF-8 text") from None
    values = _parse(text, name)
    if not isinstance(values, dict):
        raise UserError(f"{name}: holds {short(values)}; write `field: value` lines")
    return values


def set_value(values: dict[str, Any], override: str) -> None:
    """Apply `a.b=c`, with c in YAML, to nested mappings in place."""
    key, equals, text = override.partition("=")
    names, source = key.strip().split("."), f"--set {plain(override)}"
    if not equals or not all(names):
        raise UserError(f"{source}: write field.name=value")
    for name in names[:-1]:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UserError(f"{source}: {name} holds {short(inner)}, not fields; drop it there")
        values = inner
    values[names[-1]] = _parse(text, source)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark and "\n" in text else source
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{where}: no usable YAML ({problem}); mend it there") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply; write plain nested fields") from None
    except (ValueError, ArithmeticError, TypeError, AttributeError, LookupError) as error:
        # PyYAML lets these escape for values that are not what their explicit tag says.
        raise UserError(
            f"{source}: a value does not fit its `!!` tag ({error}); drop the tag"
        ) from None


def explain(source: str, error: ValidationError, root: type[BaseModel]) -> str:
    """Every problem that pydantic found: field, value, fix."""
    problems = error.errors(include_url=False)
    return join(source, [_line(p, root) for p in problems if not _follows(p, problems)])


def join(source: str, problems: list[str]) -> str:
    """One problem as it is, several below each other."""
    return problems[0] if len(problems) == 1 else "\n  ".join([f"{source}:", *problems])


def _follows(problem: Any, problems: list[Any]) -> bool:
    """Whether a list only lacks entries because these have problems of their own."""
    where = problem["loc"]
    inside = any(len(p["loc"]) > len(where) and p["loc"][: len(where)] == where for p in problems)
    return problem["type"] == "too_short" and inside


def _line(problem: Any, root: type[BaseModel]) -> str:
    where = [plain(str(part)) for part in problem["loc"] if part != "[key]"]
    field = ".".join(where) or "the file"
    kind, message = problem["type"], problem["msg"]
    if kind in ("extra_forbidden", "invalid_key"):
        return f"{field}: no such field; {_nearest(where, root)}"
    if kind == "missing":
        return f"{field}: is missing; add it"
    if kind == "value_error":
        return _inside(where, message.removeprefix("Value error, "), root)
    fix = FIXES.get(kind, message).format_map(problem.get("ctx", {}))
    return f"{field}: {short(problem['input'])} does not fit; {fix}"


def _inside(where: list[str], message: str, root: type[BaseModel]) -> str:
    """A section's own complaint, which begins with a field's name: write that out in full."""
    name, _, rest = message.partition(" ")
    for path in _paths(_section(where, root)):
        if path.split(".")[-1] == name:
            return f"{'.'.join([*where, path])} {rest}"
    return f"{'.'.join(where)}: {message}"


def _nearest(where: list[str], root: type[BaseModel]) -> str:
    known = list(getattr(_section(where[:-1], root), "model_fields", {}))
    close = difflib.get_close_matches(where[-1], known, n=1)
    if close:
        return f"did you mean {'.'.join([*where[:-1], close[0]])}?"
    elsewhere = [path for path in _paths(root) if path.split(".")[-1] == where[-1]]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"drop it, or choose from {', '.join(known)}" if known else "drop it"


def _section(where: list[str], root: Any) -> Any:
    """The section at a path of field names; None for anything else."""
    for name in where:
        field = getattr(root, "model_fields", {}).get(name)
        root = field.annotation if field else None
    return root


def _paths(section: Any) -> Iterator[str]:
    """Dotted paths of all fields below a section, its own first."""
    fields = getattr(section, "model_fields", {})
    yield from fields
    for name, field in fields.items():
        for path in _paths(field.annotation):
            yield f"{name}.{path}"


def short(value: Any) -> str:
    """A value as YAML would have it, cut to a bounded length."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    # Not repr: aliases can make a small file's values endless.
    text = _REPR.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def plain(text: str) -> str:
    """Text that fills one line and commands no terminal."""
    short = text if len(text) <= 200 else f"{text[:197]}..."
    return short if short.isprintable() else repr(short)
