"""The gradient bucket from a sweep: exactly the size at which the collective saturates.

A smaller bucket wastes bandwidth on latency, a larger one only delays the overlap with the backward
pass (arXiv 2511.17127, section on collectives). The size goes into a training config's
`engine.bucket_mb`, which counts MiB of fp32 gradients.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .. import UserError
from .files import read_bytes
from .fit import SATURATED, Fit, fit_report
from .schema import BenchReport
from .sizes import label

MIB = 2**20
REDUCTIONS = ("reduce_scatter", "all_reduce")
"""What gradients go through: with ZeRO, and without."""


@dataclass(frozen=True)
class Choice:
    """The bucket's size, and the measurement that it comes from."""

    bytes: int
    mib: int
    op: str
    group: str
    size: int
    share: float


def choose(report: BenchReport, share: float = SATURATED) -> Choice:
    """The smallest measured size that reaches `share` of the top bandwidth, in whole MiB.

    Taken from the largest group's fp32 reduce-scatter, out of place as the engines call it (else
    all-reduce). UserError where none was measured, or where the sweep ended before saturation.
    """
    fits = [f for f in fit_report(report) if f.op in REDUCTIONS and f.at_once == 1]
    if not fits:
        raise UserError(
            "bucket: the report has no reduce_scatter or all_reduce over three sizes or more; "
            "measure one of them"
        )
    best = max(fits, key=_fitness)
    size = best.measured_saturation(share)
    if size is None:
        last = label(best.points[-1][0])
        raise UserError(
            f"bucket: {best.op} over {best.size} ranks still speeds up at {last}, the largest size "
            "measured; raise max_bytes"
        )
    return Choice(size, max(1, math.ceil(size / MIB)), best.op, best.group, best.size, share)


def _fitness(f: Fit) -> tuple[bool, int, bool, bool]:
    return f.op == REDUCTIONS[0], f.size, f.dtype in ("fp32", "float32"), not f.in_place


def write(path: Path, mib: int) -> None:
    """Set `engine.bucket_mb` in a training config; every other character stays.

    UserError where the file is no such config or has a form that cannot be edited in place.
    """
    try:
        # As bytes: Python's text files would change the ends of the lines.
        text = read_bytes(path, str(path), "give a training config").decode()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        before = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({problem}); give a training config") from None
    if not isinstance(root, yaml.MappingNode) or not root.value:
        raise UserError(f"{path}: holds no `field: value` lines; give a training config")
    edited = _edit(text, root, str(mib))
    if edited is None or _parsed(edited) != _with_bucket(before, mib):
        raise UserError(
            f"{path}: engine: cannot be edited in this form; write `engine.bucket_mb: {mib}` there"
        )
    path.write_bytes(edited.encode())


def _edit(text: str, root: yaml.MappingNode, value: str) -> str | None:
    engine = _child(root, "engine")
    if engine is None and root.flow_style:
        return _insert(text, root, "engine: {bucket_mb: " + value + "}")
    if engine is None:
        end = "" if text.endswith("\n") else "\n"
        return f"{text}{end}\nengine:\n  bucket_mb: {value}\n"
    if not isinstance(engine, yaml.MappingNode):
        return None
    present = _child(engine, "bucket_mb")
    if present is not None:
        return text[: present.start_mark.index] + value + text[present.end_mark.index :]
    return _insert(text, engine, f"bucket_mb: {value}")


def _child(node: yaml.MappingNode, name: str) -> yaml.Node | None:
    return next((value for key, value in node.value if key.value == name), None)


def _insert(text: str, node: yaml.MappingNode, entry: str) -> str:
    """`entry` as a mapping's first line or item."""
    at, column = node.start_mark.index, node.start_mark.column
    if node.flow_style:
        return text[: at + 1] + entry + (", " if node.value else "") + text[at + 1 :]
    return text[:at] + entry + "\n" + " " * column + text[at:]


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _with_bucket(values: Mapping[str, Any], mib: int) -> dict[str, Any]:
    return {**values, "engine": {**(values.get("engine") or {}), "bucket_mb": mib}}
