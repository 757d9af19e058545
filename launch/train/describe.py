"""A run and its steps as records: speed, balance, model FLOPs utilisation."""

from dataclasses import asdict

import torch

from ...moe.config import ModelConfig
from ...moe.engines.base import StepMetrics
from ...moe.sizing.counts import count_parameters, flops_per_token
from ..config import RunConfig
from .hardware import device_name, machine, peak_flops
from .records import RouterRecord, RunRecord, StepRecord

PARTS = ("data", "compute", "wait", "update")
"""The stages of a step."""


class Describer:
    """Describes one run on its ranks and device."""

    def __init__(
        self, config: RunConfig, model: ModelConfig, ranks: int, device: torch.device
    ) -> None:
        self._config, self._model, self._ranks, self._device = config, model, ranks, device
        self._tokens = config.data.global_batch_size * config.data.seq_len
        self._flops = flops_per_token(model, config.data.seq_len) * self._tokens
        self._peak = peak_flops(device)

    @property
    def remark(self) -> str:
        """What a reader of the records has to know; empty if nothing."""
        if self._peak or self._device.type != "cuda":
            return ""
        return (
            f"{device_name(self._device)}: its peak is not listed in kernels/devices.py, so steps "
            "have no MFU"
        )

    def run(self, step: int) -> RunRecord:
        """A start at `step`."""
        config = self._config
        return RunRecord(
            step=step,
            steps=config.steps,
            ranks=self._ranks,
            engine=config.engine.model_dump(),
            layout=config.layout.model_dump(),
            parameters=asdict(count_parameters(self._model)),
            **machine(self._device),
        )

    def step(
        self,
        step: int,
        seconds: float,
        stages: dict[str, float],
        samples: tuple[int, int],
        metrics: StepMetrics,
    ) -> StepRecord:
        """A step that took `seconds`, by the clock of `stages`."""
        # A skipped step's may be no numbers, which JSON has no words for.
        names = () if metrics.skipped else ("loss", "aux_loss", "grad_norm")
        return StepRecord(
            step=step,
            step_s=seconds,
            parts=parts(stages),
            samples=samples,
            lr=metrics.lr,
            targets=metrics.tokens,
            tokens_per_s=self._tokens / seconds,
            expert_balance=balance(metrics.expert_load),
            skipped=True if metrics.skipped else None,
            mfu=self._flops / seconds / (self._peak * self._ranks) if self._peak else None,
            **{name: getattr(metrics, name) for name in names},
        )

    def routing(self, step: int, loads: list[torch.Tensor]) -> RouterRecord | None:
        """Each expert's tokens, from which `moelstrom bench` makes its all-to-all-v loads; None
        between the steps of `log_interval`, and for a model without experts."""
        if not loads or step % self._config.log_interval:
            return None
        return RouterRecord(step=step, expert_load=[load.tolist() for load in loads])


def parts(stages: dict[str, float]) -> dict[str, float]:
    """Seconds of a step's stages, to the microsecond."""
    return {part: round(stages.get(part, 0.0), 6) for part in PARTS}


def balance(loads: list[torch.Tensor]) -> float:
    """Largest expert load over the mean of its layer, the worst layer's; 1 is even. `loads`: of
    each layer with experts [E]; 1 where there are none."""
    shares = [load.double() / load.double().mean().clamp_min(1e-9) for load in loads]
    return max((share.max().item() for share in shares), default=1.0)
