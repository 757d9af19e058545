"""Compile a variant for a target that is not here, and read the facts off the machine code."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .assembly import Instruction, flow_graph, main_loops, parse_amdgcn, parse_sass
from .spec import Variant
from .targets import Target


@dataclass(frozen=True)
class Load:
    """An instruction that loads from global memory: bytes per thread, and how many stand there."""

    op: str
    bytes: int
    count: int


@dataclass(frozen=True)
class Facts:
    """What was compiled. Bytes are per program, `scratch` and `registers` per thread."""

    shared: int
    threads: int
    registers: int
    """32-bit; AMD: VGPRs and AGPRs together."""
    agprs: int
    spills: int
    """Registers spilled; NVIDIA: stores to a thread's own memory, a stack frame's among them."""
    scalar_spills: int
    """AMD: scalar registers spilled, most often to lanes of a vector register."""
    scratch: int
    tensor_columns: int
    occupancy: int
    """Programs per compute unit (0: does not fit)."""
    instructions: tuple[str, ...]
    """The matrix instructions, most frequent first."""
    matrix_in_loop: bool
    loads: tuple[Load, ...]
    """Of the main loop."""
    fp8: tuple[str, ...]
    """Triton's names of the 8-bit floats in the kernel."""

    @property
    def load_bytes(self) -> int:
        """The narrowest load of the main loop (0: it has none)."""
        return min((load.bytes for load in self.loads), default=0)


def compile_variant(variant: Variant, target: Target) -> Any:
    """Triton's compiled kernel; its errors pass through. Uses Triton's cache."""
    import triton
    from triton.compiler import ASTSource

    constants = dict(variant.constexprs)
    names = variant.kernel.arg_names
    signature = {n: "constexpr" if n in constants else variant.signature[n] for n in names}
    attributes = {(names.index(n),): _attributes(n, variant, target) for n in variant.divisible}
    source = ASTSource(variant.kernel, signature, constants, attributes)
    return triton.compile(source, target=target.gpu_target, options=dict(variant.options))


def _attributes(name: str, variant: Variant, target: Target) -> list[list[Any]]:
    found: list[list[Any]] = [["tt.divisibility", 16]]
    # What a launch tells the compiler of a tensor within 2 GiB, for its buffer instructions.
    if target.backend == "hip" and variant.signature[name][0] == "*" and not variant.large:
        found.append(["tt.pointer_range", 32])
    return found


def facts(compiled: Any, target: Target) -> Facts:
    """Read a compiled kernel."""
    metadata = compiled.metadata
    hip = target.backend == "hip"
    resources, instructions = (_amd if hip else _nvidia)(compiled)
    matrix_in_loop, body = main_loops(flow_graph(instructions))
    threads = metadata.num_warps * target.warp_size
    columns = getattr(metadata, "tmem_size", None) or 0
    return Facts(
        shared=metadata.shared,
        threads=threads,
        tensor_columns=columns,
        occupancy=target.occupancy(threads, resources["registers"], metadata.shared, columns),
        instructions=_ranked(i.op for i in instructions if i.matrix),
        matrix_in_loop=matrix_in_loop,
        loads=_loads(body),
        fp8=_fp8(compiled.asm["ttir"]),
        **resources,
    )


def _amd(compiled: Any) -> tuple[dict[str, int], list[Instruction]]:
    text = compiled.asm["amdgcn"]
    resources = {
        "registers": _field(text, "vgpr_count"),
        "agprs": _field(text, "agpr_count"),
        "spills": _field(text, "vgpr_spill_count"),
        "scalar_spills": _field(text, "sgpr_spill_count"),
        "scratch": _field(text, "private_segment_fixed_size"),
    }
    return resources, parse_amdgcn(text, compiled.metadata.name)


def _field(text: str, name: str) -> int:
    found = re.search(rf"(?m)^[\s-]+\.{name}:\s*(\d+)", text)
    if found is None:
        raise ValueError(f"the compiled kernel has no .{name}")
    return int(found[1])


def _nvidia(compiled: Any) -> tuple[dict[str, int], list[Instruction]]:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", str(path)]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", listing)
    if usage is None:
        raise ValueError("cuobjdump printed no resource usage")
    instructions = parse_sass(listing)
    resources = {
        "registers": int(usage[1]),
        "agprs": 0,
        "spills": sum(i.spill_store for i in instructions),
        "scalar_spills": 0,
        "scratch": int(usage[2]) + int(usage[3]),
    }
    return resources, instructions


def _ranked(names: Any) -> tuple[str, ...]:
    return tuple(name for name, _ in Counter(names).most_common())


def _loads(body: list[Instruction]) -> tuple[Load, ...]:
    found = Counter((i.op, i.load_bytes) for i in body if i.load_bytes)
    return tuple(Load(op, size, count) for (op, size), count in sorted(found.items()))


_FP8 = {
    "f8E4M3FN": "fp8e4nv",
    "f8E4M3FNUZ": "fp8e4b8",
    "f8E5M2": "fp8e5",
    "f8E5M2FNUZ": "fp8e5b16",
}


def _fp8(ttir: str) -> tuple[str, ...]:
    return tuple(sorted({_FP8.get(n, n) for n in re.findall(r"f8E\d+M\d+\w*", ttir)}))
