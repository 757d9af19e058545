"""What an operator tells the portability gate about each of its compiled forms."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triton.runtime.jit import JITFunction


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel: what `triton.compile` needs, and what the gate expects of it.

    `flops`, `bytes` and `steps` are one tile's; `tiles` is how many the launch has, of the shape
    that `key` names, for the roofline (0: not modelled).
    """

    operator: str
    """For example "grouped_mlp.gate_up"."""
    kernel: "JITFunction[Any]"
    signature: Mapping[str, str]
    """Every runtime argument: "*bf16", "i32", "fp32", "tensordesc<bf16[128,64]>"."""
    constexprs: Mapping[str, Any]
    divisible: tuple[str, ...] = ()
    """Arguments whose value (a pointer's: its address) is a multiple of 16."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """num_warps, num_stages, waves_per_eu, matrix_instr_nonkdim, ..."""
    key: str = ""
    """The shape class in the tuning file."""
    matrix: bool = False
    """A matrix instruction must stand in an inner loop."""
    narrow_loads: int = 0
    """Loads under 8 bytes that the main loop may hold (row indices, a row's scale)."""
    flops: float = 0
    bytes: float = 0
    """Loaded and stored by a tile, from wherever it lies (another tile may load the same)."""
    tiles: int = 0
    steps: int = 0
    """Main-loop steps of a tile."""
    large: bool = False
    """Some tensor is past 2 GiB: AMD then addresses with 64 bits, in more registers. The gate
    compiles both forms there."""

    @property
    def config(self) -> str:
        """The tile and options in short: "128x256x64 w8 s3"."""
        blocks = [str(v) for k, v in self.constexprs.items() if k.startswith("BLOCK")]
        short = {"num_warps": "w", "num_stages": "s", "waves_per_eu": "waves"}
        options = [f"{short.get(k, k)}{v}" for k, v in self.options.items()]
        return " ".join([*(["x".join(blocks)] if blocks else []), *options])
