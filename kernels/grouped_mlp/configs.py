"""Tile configs of the grouped kernels, and the forms the portability gate compiles."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..spec import Variant
from ..targets import Target
from ..tuning import accumulators_fit, committed, matmul_tile, split, tuned
from . import plan, rows, weights

OPERATORS = (
    "gate_up",
    "down",
    "activation_gradient",
    "input_gradient",
    "gate_up_gradient",
    "down_gradient",
)
"""Forward, then backward, each in order of launch. A tuning file names them "grouped_mlp.<name>".

BLOCK_M, BLOCK_N, BLOCK_K: the tile (of `gate_up`: BLOCK_N gate and BLOCK_N up columns); GROUP_M:
row tiles that go together (`order.locate`); SUBTILES: pieces the epilogue takes the tile in;
FLATTEN: one loop over tiles and K, so that loads run ahead over a tile's end; PROGRAMS: resident on
one compute unit.
"""

KERNELS = {
    "gate_up": rows.gate_up_kernel,
    "down": rows.linear_kernel,
    "activation_gradient": rows.activation_gradient_kernel,
    "input_gradient": rows.linear_kernel,
    "gate_up_gradient": weights.weight_gradient_kernel,
    "down_gradient": weights.weight_gradient_kernel,
}


WEIGHT_GRADIENTS = ("gate_up_gradient", "down_gradient")

FORMS: dict[str, tuple[dict[str, Any], ...]] = {
    "gate_up": ({"order": None, "copies": None}, {}),
    "activation_gradient": ({"weights": None, "weight_parts": None, "total_rows": None}, {}),
    "gate_up_gradient": ({"ACCUMULATE": False}, {"ACCUMULATE": True}),
    "down_gradient": ({"ACCUMULATE": False}, {"ACCUMULATE": True}),
}
"""An operator's forms, by the kernel arguments that make them: of rows as they are, then gathering;
without, then with routing weights; new gradients, then added to fp32 sums."""


def shape_class(hidden: int, width: int) -> str:
    """The tuning key of experts of `hidden` x `width`."""
    return f"d{hidden}_f{width}"


def config(operator: str, target: Target, hidden: int, width: int, element_bytes: int) -> dict:
    """The config of one launch: the committed one, for 2-byte elements, else by budget."""
    default = _default(operator, target, element_bytes)
    if element_bytes != 2:
        return default
    return tuned(f"grouped_mlp.{operator}", target, shape_class(hidden, width), default)


def adding(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A weight gradient's config for fp32 sums: they leave in two pieces, each as large as bf16
    results are in one."""
    return {**chosen, "SUBTILES": 2}


def gathering(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The config of `gate_up` where it gathers: a flat loop carries the rows' addresses over tiles,
    and Triton 3.6 then loads the rows without running ahead."""
    return {**chosen, "FLATTEN": False}


def weighing(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """An activation gradient's config with routing weights: their gradients' sums take registers,
    so the pieces are half as wide."""
    return {**chosen, "SUBTILES": 2 * chosen["SUBTILES"]}


def _default(operator: str, target: Target, element_bytes: int) -> dict[str, Any]:
    tile = matmul_tile(target, 2 if operator == "gate_up" else 1, element_bytes)
    chosen = {
        **tile,
        "GROUP_M": 8,
        "SUBTILES": max(1, tile["BLOCK_N"] // (64 if operator == "activation_gradient" else 128)),
        "FLATTEN": target.tensor_descriptors,
        "PROGRAMS": 1,
    }
    while chosen["num_stages"] > 1 and _shared(operator, target, chosen, element_bytes) > (
        target.shared_bytes
    ):
        chosen["num_stages"] -= 1
    return chosen


def _shared(operator: str, target: Target, c: Mapping[str, Any], element_bytes: int) -> int:
    """Shared memory of the main loop and, beside it, of the epilogue's copy of a piece."""
    weight_tiles = 2 if operator == "gate_up" else 1
    stage = (c["BLOCK_M"] + weight_tiles * c["BLOCK_N"]) * c["BLOCK_K"] * element_bytes
    total = target.pipeline_bytes(stage, c["num_stages"])
    if target.tensor_descriptors:
        held = 4 if operator in WEIGHT_GRADIENTS else element_bytes
        total += c["BLOCK_M"] * c["BLOCK_N"] // c["SUBTILES"] * held + 1024
    return total


def fits(operator: str, target: Target, c: Mapping[str, Any]) -> bool:
    """Whether a bf16 config keeps to the target's budgets, with its PROGRAMS on one compute unit:
    shared memory, warps, and accumulators in registers. A weight gradient also with fp32 sums."""
    accumulators = 2 if operator == "gate_up" else 1
    programs, warps = c["PROGRAMS"], c["num_warps"]
    widest = adding(c) if operator in WEIGHT_GRADIENTS else c
    stage = (c["BLOCK_M"] + accumulators * c["BLOCK_N"]) * c["BLOCK_K"] * 2
    resident = target.pipeline_bytes(stage, c["num_stages"]) + target.shared_reserved
    elements = accumulators * c["BLOCK_M"] * c["BLOCK_N"]
    return (
        warps <= target.max_warps
        and programs * warps <= target.warps
        and programs * resident <= target.unit_shared_bytes
        and _shared(operator, target, widest, 2) <= target.shared_bytes
        and accumulators_fit(target, elements, warps, programs)
    )


def launch_constants(
    operator: str, chosen: Mapping[str, Any], target: Target, **flags: Any
) -> dict[str, Any]:
    """A launch's keyword arguments: the config, and what follows from operator and target."""
    known = KERNELS[operator].arg_names
    constants = {
        **chosen,
        **flags,
        "FLATTEN": chosen["FLATTEN"] and flags["DESCRIPTORS"],
        "TRANSPOSED": operator == "down",
        "XCDS": target.xcds,
    }
    return {
        k: v
        for k, v in constants.items()
        if k in known or k.startswith(("num_", "waves", "matrix"))
    }


def variants(target: Target) -> Iterator[Variant]:
    """Every committed form for `target`: bf16, each operator and shape class, then the plan."""
    for operator in OPERATORS:
        classes = {"*": {}, **committed(f"grouped_mlp.{operator}", target)}
        for key in classes:
            chosen = tuned(f"grouped_mlp.{operator}", target, key, _default(operator, target, 2))
            yield from _forms(operator, target, key, chosen)
    yield Variant(
        "grouped_mlp.plan",
        plan.plan_kernel,
        {"offsets": "*i32", "tiles": "*i32", "count": "*i32", "groups": "*i32", "E": "i32"},
        {"BLOCK_M": 128, "EXPERTS": 128},
        divisible=("offsets", "tiles", "count", "groups"),
        options={"num_warps": 1},
        narrow_loads=8,
    )


def _forms(operator: str, target: Target, key: str, chosen: dict[str, Any]) -> Iterator[Variant]:
    flags = {"DESCRIPTORS": target.tensor_descriptors, "EVEN": True, "WHOLE": True, "SAVE": True}
    for form in FORMS.get(operator, ({},)):
        c = _of_form(operator, chosen, form)
        constants, options = split(launch_constants(operator, c, target, **flags))
        signature = _signature(operator, c, target.tensor_descriptors, form)
        anything = (*form, "E", "tile_count", "copies", "total_rows")
        divisible = [
            n for n, t in signature.items() if not t.startswith("tensordesc") and n not in anything
        ]
        yield Variant(
            f"grouped_mlp.{operator}",
            KERNELS[operator],
            signature,
            {**constants, **form},
            tuple(divisible),
            options,
            key=key,
            matrix=True,
            # The loop that goes over tiles reads a tile's record of three numbers.
            narrow_loads=3 + _weight_loads(operator, c, form, target),
            **_work(operator, key, c),
        )


def _of_form(operator: str, c: dict[str, Any], form: Mapping[str, Any]) -> dict[str, Any]:
    if form.get("ACCUMULATE"):
        return adding(c)
    special = {"gate_up": gathering, "activation_gradient": weighing}
    return special[operator](c) if operator in special and not form else c


def _weight_loads(
    operator: str, c: Mapping[str, Any], form: Mapping[str, Any], target: Target
) -> int:
    """Routing weights a thread reads: one for each row of its 16 bytes of a piece."""
    if operator != "activation_gradient" or form:
        return 0
    threads = c["num_warps"] * target.warp_size
    return c["BLOCK_M"] * c["BLOCK_N"] // c["SUBTILES"] // (8 * threads)


MODELLED = {"d2048_f1024": (131_072, 64), "d2048_f768": (131_072, 128)}
"""Rows and experts of a shape class in the roofline model: the benchmark's."""


def _work(operator: str, key: str, c: Mapping[str, Any]) -> dict[str, Any]:
    """One tile's operations and bytes, and the tiles of a balanced load, for the roofline.

    Modelled for a shape class with known widths; a tile reads its blocks of both operands (L2
    serves most of that) and writes its part of the results, bf16.
    """
    if not (found := re.fullmatch(r"d(\d+)_f(\d+)", key)):
        return {}
    hidden, width = map(int, found.groups())
    m, n = c["BLOCK_M"], c["BLOCK_N"] * (2 if operator == "gate_up" else 1)
    rows, experts = MODELLED.get(key, (16_384, 16))
    height, across, depth = {
        "gate_up": (rows, 2 * width, hidden),
        "down": (rows, hidden, width),
        "activation_gradient": (rows, width, hidden),
        "input_gradient": (rows, hidden, 2 * width),
        "gate_up_gradient": (experts * 2 * width, hidden, rows // experts),
        "down_gradient": (experts * hidden, width, rows // experts),
    }[operator]
    results = {"gate_up": 1.5, "activation_gradient": 5}.get(operator, 1)
    return {
        "flops": 2 * m * n * depth,
        "bytes": 2 * ((m + n) * depth + results * m * n),
        "steps": -(-depth // c["BLOCK_K"]),
        "tiles": -(-height // m) * -(-across // n),
    }


def _signature(
    operator: str, c: Mapping[str, Any], descriptors: bool, form: Mapping[str, Any]
) -> dict[str, str]:
    m, n, k = (c[f"BLOCK_{a}"] for a in "MNK")
    piece = n // c["SUBTILES"]

    def matrix(*block: int, dtype: str = "bf16") -> str:
        sizes = ",".join(map(str, block))
        return f"tensordesc<{dtype}[{sizes}]>" if descriptors else f"*{dtype}"

    tiles = {"tiles": "*i32", "tile_count": "*i32"}
    if operator == "gate_up":
        blocks = {"x": matrix(m, k) if "order" in form else "*bf16", "weight": matrix(2, n, k)}
        stores = dict.fromkeys(("gate_out", "up_out", "act_out"), "*bf16")
        return (
            blocks | stores | {"order": "*i64", "copies": "i32"} | tiles | {"D": "i32", "F": "i32"}
        )
    if operator in ("down", "input_gradient"):
        weight = matrix(1, n, k) if operator == "down" else matrix(1, k, n)
        blocks = {"x": matrix(m, k), "weight": weight, "out": matrix(1, 1, m, piece)}
        return blocks | tiles | {"K": "i32", "N": "i32"}
    if operator == "activation_gradient":
        blocks = {"dy": matrix(m, k), "weight": matrix(1, k, n)}
        stores = dict.fromkeys(("hidden", "dgate_out", "dup_out", "act_out"), "*bf16")
        weights = {"weights": "*fp32", "weight_parts": "*fp32", "total_rows": "i32"}
        return blocks | stores | weights | tiles | {"D": "i32", "F": "i32"}
    blocks = {
        "left": matrix(1, 1, k, m),
        "right": matrix(1, 1, k, n),
        "out": matrix(1, m, piece, dtype="fp32" if form["ACCUMULATE"] else "bf16"),
    }
    return blocks | {"groups": "*i32", "E": "i32", "M": "i32", "N": "i32"}
