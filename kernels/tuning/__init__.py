"""Committed tile configs: one `<target>.json` beside this file, read by launches and by the gate.

    {"grouped_mlp.gate_up": {"d2048_f768": {"BLOCK_M": 128, ..., "num_warps": 8}, "*": {...}}}

The second level is the shape class; "*" serves every class not named. A config holds the kernel's
constants (capitals) and Triton's options (lower case), to be passed to the launch as they are.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..targets import Target

FOLDER = Path(__file__).parent
Entries = Mapping[str, Mapping[str, Mapping[str, Any]]]


@cache
def _file(name: str) -> dict[str, dict[str, dict[str, Any]]]:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def committed(operator: str, target: Target) -> dict[str, dict[str, Any]]:
    """The operator's configs by shape class; empty where none is committed for the target."""
    return {key: dict(config) for key, config in _file(target.name).get(operator, {}).items()}


def tuned(operator: str, target: Target, key: str, default: Mapping[str, Any]) -> dict[str, Any]:
    """The committed config of the shape class, else that of "*", else `default` (chosen by the
    target's budgets, as `matmul_tile` does); what a committed config leaves out is `default`'s."""
    configs = _file(target.name).get(operator, {})
    return {**default, **configs.get(key, configs.get("*", {}))}


def commit(found: Entries, target: Target) -> Path:
    """Write the target's file anew with `found`, by operator and shape class, beside the operators
    and classes it holds; returns its path."""
    old = _file(target.name)
    path = FOLDER / f"{target.name}.json"
    path.write_text(render({**old, **{o: {**old.get(o, {}), **found[o]} for o in found}}), "utf-8")
    _file.cache_clear()
    return path


def render(entries: Entries) -> str:
    """The text of a tuning file: operators by name, a line a config, "*" last."""
    operators = []
    for operator, classes in sorted(entries.items()):
        keys = sorted(classes, key=lambda key: key == "*")
        lines = ",\n".join(f'    "{key}": {json.dumps(classes[key])}' for key in keys)
        operators.append(f'  "{operator}": {{\n{lines}\n  }}')
    return "{\n" + ",\n".join(operators) + "\n}\n"


def split(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A config's constants and its Triton options, as a Variant takes them."""
    constants = {k: v for k, v in config.items() if k[0].isupper()}
    return constants, {k: v for k, v in config.items() if not k[0].isupper()}


def matmul_tile(target: Target, accumulators: int = 1, element_bytes: int = 2) -> dict[str, Any]:
    """The largest tile with fp32 accumulators that fits the target's budgets.

    Returns BLOCK_M, BLOCK_N, BLOCK_K, num_warps and num_stages. `accumulators` [BLOCK_M, BLOCK_N]
    are held at once (2 for gate and up, whose weights are two tiles of a stage).
    """
    for m, n, k, warps in _TILES:
        stages = _stages(target, (m + accumulators * n) * k * element_bytes)
        if stages and accumulators_fit(target, accumulators * m * n, warps):
            sizes = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}
            return {**sizes, "num_warps": warps, "num_stages": stages}
    raise ValueError(f"no tile fits {target.name} with {accumulators} accumulators")


def accumulators_fit(target: Target, elements: int, warps: int, programs: int = 1) -> bool:
    """Whether a program's fp32 accumulators leave registers enough for the rest, with that many
    programs on a compute unit."""
    # The rest of the registers holds addresses and, on some targets, the operands.
    share = 0.45 if target.operands_in_registers else 0.6
    threads = warps * target.warp_size
    budget = share * min(target.thread_registers, target.registers // (threads * programs))
    return elements // threads <= budget


_TILES = [
    (128, 256, 64, 8),
    (128, 128, 64, 8),
    (128, 128, 32, 8),
    (128, 64, 64, 8),
    (64, 64, 32, 4),
]
"""Largest first: BLOCK_M, BLOCK_N, BLOCK_K, warps."""


def _stages(target: Target, stage_bytes: int) -> int:
    fitting = (s for s in (4, 3, 2) if target.pipeline_bytes(stage_bytes, s) <= target.shared_bytes)
    return next(fitting, 0)
