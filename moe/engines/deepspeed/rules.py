"""DeepSpeed, as the rest of the program knows it without importing it."""

from collections.abc import Iterator, Sequence

from ...config import EngineConfig, OptimizerConfig
from ...grid import Grid, Shape
from ...state.names import Local
from ..base import Engine
from ..kind import EngineKind, Run, end_to_end, even, kinds, untrained
from ..options import EngineOptions


class DeepSpeed(EngineKind):
    """DeepSpeed 0.19.8's ZeRO 0 to 3 with our experts."""

    name = "deepspeed"

    @classmethod
    def problems(
        cls,
        shape: Shape,
        zero: int,
        optimizer: OptimizerConfig | None = None,
        engine: EngineConfig | None = None,
    ) -> Iterator[str]:
        """ZeRO 3 knows expert groups only for the layers of its own AutoEP: it would partition our
        experts over ranks that hold different ones. From ZeRO 1 on it flattens the parameters, and
        Muon needs whole matrices; its own Muon orthogonalises before it measures and clips the
        norm, so it is not the update that `optimizer` describes. Compiled blocks do not see the
        gathering of ZeRO 3."""
        if zero > 1 and shape.pp > 1:
            yield (
                f"zero is {zero} with pp {shape.pp}: DeepSpeed's pipeline accumulates whole "
                "gradients, so set zero to 1, or pp to 1"
            )
        if zero == 3 and shape.ep > 1:
            yield (
                f"ep is {shape.ep} with zero 3 and engine deepspeed: its ZeRO 3 cannot partition "
                "experts that ranks do not share; set zero to 2, or ep to 1"
            )
        if optimizer is not None and optimizer.name == "muon" and zero > 0:
            yield (
                f"zero is {zero} with optimizer.name muon and engine deepspeed: its ZeRO splits "
                "the matrices that Muon needs whole; set zero to 0, or engine to native"
            )
        if engine is not None:
            yield from untrained(shape)
            if engine.compile and zero == 3:
                yield (
                    "zero is 3 with engine.compile true and engine deepspeed: compiled blocks do "
                    "not gather its partitioned parameters; set engine.compile to false, or zero "
                    "to 2"
                )

    @classmethod
    def share(
        cls,
        held: Sequence[Local],
        members: int,
        zero: int,
        bucket_bytes: int,
        optimizer: OptimizerConfig,
    ) -> Iterator[tuple[int, Run]]:
        """ZeRO 1 and 2: each group of parameters laid end to end, padded to twice the ranks, and
        cut evenly. ZeRO 3: so each parameter alone, padded to the ranks."""
        if zero == 3:
            for i, p in enumerate(held):
                yield from even([i], [p.numel], [0], -(-p.numel // members))
            return
        for group in kinds(held, optimizer).values():
            numels = [held[i].numel for i in group]
            starts, total = end_to_end(numels, 1)
            yield from even(group, numels, starts, 2 * -(-total // (2 * members)))

    @classmethod
    def updates_in_place(cls, zero: int, precision: str) -> bool:
        """Without ZeRO it updates fp32 weights where they are."""
        return zero == 0 and precision == "fp32"

    @classmethod
    def make(cls, options: EngineOptions, grid: Grid) -> Engine:
        """The engine itself; imports DeepSpeed."""
        from .engine import DeepSpeedEngine

        return DeepSpeedEngine(options, grid)
