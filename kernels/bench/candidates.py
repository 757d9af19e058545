"""Tile configs worth timing for the grouped expert MLP, within a target's budgets."""

from typing import Any, NamedTuple

from ..grouped_mlp.configs import config, fits
from ..targets import Target
from .cases import WIDTHS, Width
from .products import Config


class Tile(NamedTuple):
    m: int
    n: int
    k: int
    warps: int
    programs: int


GATE_UP = (
    Tile(128, 128, 64, 8, 1),
    Tile(128, 64, 64, 8, 1),
    Tile(256, 64, 64, 8, 1),
    Tile(128, 128, 128, 8, 1),
    Tile(128, 64, 64, 4, 2),
    Tile(64, 128, 64, 4, 2),
)
LINEAR = (
    Tile(128, 256, 64, 8, 1),
    Tile(128, 128, 64, 8, 1),
    Tile(256, 128, 64, 8, 1),
    Tile(128, 256, 128, 8, 1),
    Tile(128, 128, 64, 4, 2),
    Tile(64, 256, 64, 4, 2),
    Tile(64, 128, 64, 4, 2),
)
"""Best first, of an H100's sweep: the first that fits is varied, the others enter once."""
STAGES = (4, 3, 2)
GROUPS = (8, 4, 16)
OPTIONS = {
    "cuda": ({},),
    "hip": (
        {"waves_per_eu": 0, "matrix_instr_nonkdim": 0},
        {"waves_per_eu": 2, "matrix_instr_nonkdim": 0},
        {"waves_per_eu": 0, "matrix_instr_nonkdim": 16},
    ),
}
"""Triton's own choice first, spelled out so that a committed option cannot stand behind it."""
ORDER = (
    "BLOCK_M",
    "BLOCK_N",
    "BLOCK_K",
    "GROUP_M",
    "SUBTILES",
    "FLATTEN",
    "PROGRAMS",
    "num_warps",
    "num_stages",
)


def pieces(operator: str) -> tuple[int, ...]:
    """SUBTILES to try, most first: more leave the main loop more shared memory."""
    if operator == "gate_up":
        return (1,)
    return (4, 2, 1) if operator == "activation_gradient" else (2, 1)


def candidates(operator: str, target: Target) -> list[Config]:
    """Distinct configs of "gate_up" (...) that fit `target`, those it runs now among them.

    The best tile that fits comes with its pieces, two pipeline depths and groupings of tiles, then
    without the flat loop (descriptors) or with AMD's options; the other tiles as deep as they fit.
    """
    tiles = GATE_UP if operator == "gate_up" else LINEAR
    fitting = [found for tile in tiles if (found := _forms(operator, target, tile))]
    best, *others = fitting
    found = [form | {"GROUP_M": group} for form in best for group in GROUPS]
    if target.tensor_descriptors:
        found.append(best[0] | {"FLATTEN": False})
    found += [best[0] | options for options in OPTIONS[target.backend][1:]]
    found += [forms[0] for forms in others]
    found += [now(operator, target, width) for width in WIDTHS]
    return [c for i, c in enumerate(found) if c not in found[:i]]


def now(operator: str, target: Target, width: Width) -> Config:
    """The config that a launch of that width takes today."""
    return _written(operator, config(operator, target, width.hidden, width.ffn, 2))


def _forms(operator: str, target: Target, tile: Tile) -> list[Config]:
    """The tile in each number of pieces, at the two deepest pipelines that fit."""
    base: Config = {
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
        "GROUP_M": GROUPS[0],
        "FLATTEN": target.tensor_descriptors,
        "PROGRAMS": tile.programs,
        "num_warps": tile.warps,
        **OPTIONS[target.backend][0],
    }
    found = []
    for count in pieces(operator):
        forms = [base | {"SUBTILES": count, "num_stages": stages} for stages in STAGES]
        found += [form for form in forms if fits(operator, target, form)][:2]
    return [_written(operator, form) for form in found]


def _written(operator: str, c: Config) -> Config:
    """The config as a tuning file holds it: in ORDER, and `gate_up` without pieces."""
    names = [*(name for name in ORDER if name in c), *(name for name in c if name not in ORDER)]
    return {name: c[name] for name in names if (operator, name) != ("gate_up", "SUBTILES")}


def describe(c: Config) -> str:
    """A config in short: "128x256x64 w8 s3 sub2 g8"."""
    text = f"{c['BLOCK_M']}x{c['BLOCK_N']}x{c['BLOCK_K']} w{c['num_warps']} s{c['num_stages']}"
    text += f" sub{c['SUBTILES']}" if "SUBTILES" in c else ""
    text += f" g{c['GROUP_M']}" + (f" x{c['PROGRAMS']}" if c["PROGRAMS"] > 1 else "")
    text += " flat" if c["FLATTEN"] else ""
    return " ".join([text, *(f"{k} {v}" for k, v in c.items() if k not in ORDER and v)])


def fastest(row: dict[str, Any]) -> dict[str, Any] | None:
    """Of a width's rates in a record of `kernels tune`, the fastest that was timed."""
    timed = [rate for rate in row["rates"] if rate["tflops"]]
    return max(timed, key=lambda rate: rate["tflops"], default=None)
