"""Turning what a user wrote into values, or into one clear message."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from .. import UserError


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError names the file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a YAML file or a recipe's name") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds {_short(values)}, not `field: value` lines")
    return values


def set_value(values: dict[str, Any], override: str) -> None:
    """Apply `a.b=c`, with c in YAML, to nested mappings in place."""
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise UserError(f"--set {override}: write field.name=value")
    for name in names[:-1]:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {override}: {name} holds {_short(inner)}, not fields")
        values = inner
    values[names[-1]] = _parse(text, f"--set {override}")


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{source}{line}: not YAML ({problem})") from None
    except (ValueError, OverflowError, TypeError, RecursionError, AttributeError) as error:
        # PyYAML lets these escape for dates, numbers and nesting that Python cannot hold.
        raise UserError(f"{source}: a value cannot be read ({error})") from None


def explain(source: str, error: Exception, root: type[BaseModel]) -> str:
    """Every problem that pydantic found, a line each: field, value, fix."""
    if not isinstance(error, ValidationError):
        return f"{source}: nested too deeply; write plain nested fields"
    lines = [_line(problem, root) for problem in error.errors(include_url=False)]
    return lines[0] if len(lines) == 1 else "\n  ".join([f"{source}:", *lines])


def _line(problem: Any, root: type[BaseModel]) -> str:
    where = [str(part) for part in problem["loc"]]
    field = ".".join(where) or "the file"
    kind, message = problem["type"], problem["msg"]
    if kind == "extra_forbidden":
        return f"{field}: no such field{_nearest(where, root)}"
    if kind == "missing":
        return f"{field}: is missing; add it"
    if kind == "value_error":
        inside = message.removeprefix("Value error, ")
        return f"{field}: {inside}"
    message = message[0].lower() + message[1:]
    return f"{field}: {_short(problem['input'])} does not fit; {message}"


def _nearest(where: list[str], root: type[BaseModel]) -> str:
    model: Any = root
    for name in where[:-1]:
        field = getattr(model, "model_fields", {}).get(name)
        model = field.annotation if field else None
    known = list(getattr(model, "model_fields", {}))
    close = difflib.get_close_matches(where[-1], known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
