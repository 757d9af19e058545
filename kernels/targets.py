"""The GPUs the kernels are compiled for: every budget and rate a tile choice may depend on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from .. import UserError
from .devices import device as find_device

if TYPE_CHECKING:
    from triton.backends.compiler import GPUTarget


@dataclass(frozen=True)
class Target:
    """One GPU architecture; rates are the data sheet's, of the product named.

    A compute unit is AMD's CU or NVIDIA's SM; a warp is also AMD's wavefront; registers are 32-bit,
    of a whole compute unit and at most of one thread.
    """

    name: str
    product: str
    backend: Literal["hip", "cuda"]
    warp_size: int
    shared_bytes: int
    """The most one program may use."""
    unit_shared_bytes: int
    """What the programs resident on one compute unit share."""
    shared_reserved: int
    """Bytes the system takes from each program beside its own."""
    registers: int
    thread_registers: int
    register_granule: int
    """A thread's registers are handed out in multiples of this."""
    warps: int
    """The most resident on one compute unit."""
    programs: int
    """The most resident on one compute unit."""
    schedulers: int
    """SIMDs of a CU, sub-partitions of an SM: a warp's registers come from one of them."""
    compute_units: int
    xcds: int
    """Dies with an L2 of their own; consecutive programs go to them in turn."""
    fp8: tuple[str, ...]
    """Triton's names of the 8-bit floats its matrix units take, e4m3 first; none: empty."""
    tensor_descriptors: bool
    """Whether tiles are copied by hardware from a descriptor (TMA)."""
    operands_in_registers: bool
    """Whether matrix instructions take their operands from there, not from shared memory."""
    tensor_columns: int
    """Of a compute unit's tensor memory (0: matrix results stay in registers)."""
    peak_flops: float
    """Dense bf16."""
    memory_rate: float
    """HBM, bytes/s."""
    cache_rate: float
    """All of L2, bytes/s: from the vendor's bytes per clock and the boost clock where those are
    published (gfx, sm80), else taken as the same per clock as the architecture before it."""
    max_threads: int = 1024

    @property
    def gpu_target(self) -> "GPUTarget":
        """Triton's form of this target, to compile for it without the GPU."""
        from triton.backends.compiler import GPUTarget

        arch = int(self.name.removeprefix("sm")) if self.backend == "cuda" else self.name
        return GPUTarget(self.backend, arch, self.warp_size)

    @property
    def max_warps(self) -> int:
        """The most warps of one program (16 on AMD, 32 on NVIDIA)."""
        return self.max_threads // self.warp_size

    def pipeline_bytes(self, stage_bytes: int, num_stages: int) -> int:
        """Shared memory of a software pipeline whose stage holds `stage_bytes`.

        CDNA3 and before load through registers, so that the stage in flight takes no shared
        memory; NVIDIA and CDNA4 copy straight to it, CDNA4 to rows padded by up to 1/64, and a
        few barriers.
        """
        if self.name in ("gfx90a", "gfx942"):
            return stage_bytes * max(1, num_stages - 1)
        padding = stage_bytes // 64 if self.backend == "hip" else 0
        return (stage_bytes + padding) * num_stages + 256

    def occupancy(self, threads: int, registers: int, shared: int, columns: int = 0) -> int:
        """Programs resident at once on a compute unit (0: one alone does not fit).

        `registers` per thread (AMD: VGPRs and AGPRs together), `shared` bytes and tensor memory
        `columns` per program.
        """
        warps = -(-threads // self.warp_size)
        if threads > self.max_threads or shared > self.shared_bytes:
            return 0
        if registers > self.thread_registers:
            return 0
        granted = -(-max(registers, 1) // self.register_granule) * self.register_granule
        per_scheduler = self.registers // self.schedulers // (granted * self.warp_size)
        by_registers = min(per_scheduler * self.schedulers, self.warps) // warps
        used = shared + self.shared_reserved
        by_shared = self.unit_shared_bytes // used if used else self.programs
        by_columns = self.tensor_columns // columns if columns else self.programs
        return min(by_registers, by_shared, by_columns, self.programs)


_CDNA: dict[str, Any] = {
    "backend": "hip",
    "warp_size": 64,
    "shared_reserved": 0,
    "registers": 4 * 512 * 64,
    "thread_registers": 512,
    "register_granule": 8,
    "warps": 32,
    "programs": 32,
    "schedulers": 4,
    "tensor_descriptors": False,
    "operands_in_registers": True,
    "tensor_columns": 0,
}
_NVIDIA: dict[str, Any] = {
    "backend": "cuda",
    "warp_size": 32,
    "shared_reserved": 1024,
    "registers": 65_536,
    "thread_registers": 255,
    "register_granule": 8,
    "warps": 64,
    "programs": 32,
    "schedulers": 4,
    "xcds": 1,
}


def _rates(product: str) -> dict[str, Any]:
    sheet = find_device(product)
    assert sheet is not None
    return {"peak_flops": sheet.bf16_flops, "memory_rate": sheet.memory_rate}


TARGETS: Mapping[str, Target] = {
    t.name: t
    for t in (
        Target(
            name="gfx90a",
            product="MI250X, one of its two dies",
            shared_bytes=65_536,
            unit_shared_bytes=65_536,
            compute_units=110,
            xcds=1,
            fp8=(),
            **_rates("MI250X"),
            cache_rate=7.0e12,
            **_CDNA,
        ),
        Target(
            name="gfx942",
            product="MI300X",
            shared_bytes=65_536,
            unit_shared_bytes=65_536,
            compute_units=304,
            xcds=8,
            fp8=("fp8e4b8", "fp8e5b16"),
            **_rates("MI300X"),
            cache_rate=34.4e12,
            **_CDNA,
        ),
        Target(
            name="gfx950",
            product="MI355X",
            shared_bytes=163_840,
            unit_shared_bytes=163_840,
            compute_units=256,
            xcds=8,
            fp8=("fp8e4nv", "fp8e5"),
            **_rates("MI355X"),
            cache_rate=39.3e12,
            **_CDNA,
        ),
        Target(
            name="sm80",
            product="A100 SXM 80 GB",
            shared_bytes=166_912,
            unit_shared_bytes=167_936,
            compute_units=108,
            fp8=(),
            tensor_descriptors=False,
            operands_in_registers=True,
            tensor_columns=0,
            **_rates("A100"),
            cache_rate=7.2e12,
            **_NVIDIA,
        ),
        Target(
            name="sm90",
            product="H100 SXM",
            shared_bytes=232_448,
            unit_shared_bytes=233_472,
            compute_units=132,
            fp8=("fp8e4nv", "fp8e5"),
            tensor_descriptors=True,
            operands_in_registers=False,
            tensor_columns=0,
            **_rates("H100"),
            cache_rate=9.4e12,
            **_NVIDIA,
        ),
        Target(
            name="sm100",
            product="B200",
            shared_bytes=232_448,
            unit_shared_bytes=233_472,
            compute_units=148,
            fp8=("fp8e4nv", "fp8e5"),
            tensor_descriptors=True,
            operands_in_registers=False,
            tensor_columns=512,
            **_rates("B200"),
            cache_rate=19.6e12,
            **_NVIDIA,
        ),
    )
}

TORCH_FP8: Mapping[str, torch.dtype] = {
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e4b8": torch.float8_e4m3fnuz,
    "fp8e5": torch.float8_e5m2,
    "fp8e5b16": torch.float8_e5m2fnuz,
}


def find(name: str) -> Target:
    """The target of that name; a UserError lists the known ones."""
    if name not in TARGETS:
        raise UserError(f"target {name}: not known; one of {', '.join(TARGETS)}")
    return TARGETS[name]


def current(device: torch.device | int | None = None) -> Target:
    """The running GPU's target, with its own compute units and shared memory.

    A GPU outside the table takes the newest older entry of its vendor under its own name, so that
    tiles are chosen for its budget. UserError: no GPU, or one too old for the kernels.
    """
    if not torch.cuda.is_available():
        raise UserError("no GPU is visible: name a target instead")
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        name = properties.gcnArchName.partition(":")[0]
        base = TARGETS.get(name)
    else:
        name = f"sm{properties.major}{properties.minor}"
        base = _nearest(10 * properties.major + properties.minor)
    if base is None:
        raise UserError(f"GPU {properties.name} ({name}): the kernels need {', '.join(TARGETS)}")
    shared = getattr(properties, "shared_memory_per_block_optin", 0) or base.shared_bytes
    return replace(
        base,
        name=name,
        product=properties.name,
        shared_bytes=shared,
        unit_shared_bytes=min(base.unit_shared_bytes, shared + base.shared_reserved),
        compute_units=properties.multi_processor_count,
    )


def _nearest(capability: int) -> Target | None:
    known = {int(t.name[2:]): t for t in TARGETS.values() if t.backend == "cuda"}
    older = [c for c in known if c <= capability]
    return known[max(older)] if older else None
