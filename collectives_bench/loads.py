"""How uneven an all-to-all-v is: the share of its bytes that every rank sends to every other.

Router loads come as popularities of experts, which lie on the ranks in blocks as in an
expert-parallel group; every rank's tokens follow the same popularities.
"""

import math
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from .. import UserError
from .files import parse_json, read_bytes

EXPERTS = 8
"""Experts on a rank for `zipf:S` (our choice)."""
MOST = 1e18
"""Of one number in a file: their sums stay exact enough, and finite."""
_LOADS = TypeAdapter(list[list[Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]]])


def check_load(text: str) -> None:
    """ValueError, which says what would fit, for a load of another form."""
    kind, _, value = text.partition(":")
    if kind == "zipf":
        try:
            fits = 0 <= float(value) < math.inf
        except ValueError:
            fits = False
    else:
        fits = text == "balanced" or (kind in ("log", "matrix") and bool(value))
    if not fits:
        raise ValueError(f"{text!r}: give balanced, zipf:S (S >= 0), log:PATH or matrix:PATH")


def read_load(text: str) -> np.ndarray | None:
    """The numbers in the load's file: popularities [E], or a matrix [n, n]; None without a file.

    UserError says what is wrong with the file.
    """
    kind, _, value = text.partition(":")
    if kind == "log":
        return _read_log(Path(value))
    return _read_matrix(Path(value)) if kind == "matrix" else None


def shares(text: str, table: np.ndarray | None, n: int, seed: int) -> np.ndarray:
    """[n, n]: of one rank's full send buffer, what rank i sends to rank j.

    Rows sum to 1; of a matrix the largest does. `table` is `read_load`'s. UserError where it does
    not fit n ranks.
    """
    if text.startswith("matrix:"):
        return _scaled(text, table, n)
    if text == "balanced":
        return np.full((n, n), 1 / n)
    if table is None:
        table = np.arange(1, EXPERTS * n + 1) ** -float(text.partition(":")[2])
        np.random.default_rng(seed).shuffle(table)
    if len(table) < n:
        raise UserError(
            f"loads: {text}: has {len(table)} experts for {n} ranks; give a smaller group"
        )
    row = np.array([block.sum() for block in np.array_split(table / table.sum(), n)])
    return np.tile(row, (n, 1))


def counts(parts: np.ndarray, total: int, unit: int) -> np.ndarray:
    """`shares` of `total` elements as whole multiples of `unit` elements, [n, n] int64.

    Each row's sum is right to a unit: what rounding leaves goes to the largest fractions.
    """
    exact = parts * (total // unit)
    whole = np.floor(exact + 1e-9).astype(np.int64)
    left = np.rint(exact.sum(axis=1)).astype(np.int64) - whole.sum(axis=1)
    order = np.argsort(whole - exact, axis=1, kind="stable")
    for row, missing in enumerate(left):
        whole[row, order[row, :missing]] += 1
    return whole * unit


def _scaled(text: str, table: np.ndarray | None, n: int) -> np.ndarray:
    assert table is not None
    if len(table) < n:
        raise UserError(f"loads: {text}: has {len(table)} rows for {n} ranks; add the missing ones")
    part = table[:n, :n]
    largest = part.sum(axis=1).max()
    if largest <= 0:
        raise UserError(f"loads: {text}: its first {n} ranks send nothing; give positive numbers")
    return part / largest


def _read_log(path: Path) -> np.ndarray:
    """The experts' loads of the least even layer at the last logged step: the one that a step
    waits for longest."""
    # Unlike `Path.is_dir`, this one has no error for a name that is too long.
    path = path / "metrics.jsonl" if os.path.isdir(path) else path  # noqa: PTH112
    layers = None
    for number, line in enumerate(_text(path, "log").splitlines(), 1):
        layers = _layers(line, f"loads: log:{path}: line {number}") or layers
    if layers is None:
        raise UserError(
            f"loads: log:{path}: no record of kind 'router'; give the metrics.jsonl of a training "
            "run of an MoE model"
        )
    loads = [np.array(layer, dtype=float) for layer in layers]
    return max(loads, key=lambda load: load.max() / load.mean())


def _layers(line: str, where: str) -> list[list[float]] | None:
    """A router record's loads, without layers that got no token."""
    try:
        record: Any = parse_json(line)
    except ValueError:
        # A kill may have cut a line short.
        return None
    if not isinstance(record, dict) or record.get("kind") != "router":
        return None
    try:
        layers = _LOADS.validate_python(record.get("expert_load"), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        at = "".join(f"[{part}]" for part in first["loc"])
        raise UserError(
            f"{where}: expert_load{at}: {first['msg']}; give each layer's tokens by expert, as a "
            "training run's metrics.jsonl does"
        ) from None
    return [layer for layer in layers if sum(layer) > 0] or None


def _read_matrix(path: Path) -> np.ndarray:
    where = f"loads: matrix:{path}"
    rows = [line.replace(",", " ").split() for line in _text(path, "matrix").splitlines()]
    try:
        table = np.array([[float(value) for value in row] for row in rows if row])
    except ValueError as error:
        raise UserError(f"{where}: {error}; give a row of numbers for each sender") from None
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise UserError(f"{where}: is not square; give as many numbers in a row as there are rows")
    if not ((table >= 0) & (table <= MOST)).all():
        raise UserError(
            f"{where}: has negative, infinite or huge numbers; give bytes, or relative ones up to "
            f"{MOST:g}"
        )
    return table


def _text(path: Path, kind: str) -> str:
    return read_bytes(path, f"loads: {kind}:{path}", "give a file").decode(errors="replace")
