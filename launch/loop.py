"""The training loop: knows data, engine and checkpoints, and nothing of how they work."""

import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .. import UserError
from ..cluster.events import EventWriter
from ..moe.build import build_model
from ..moe.checkpoint.folder import step_folder
from ..moe.checkpoint.reader import Reader, choose
from ..moe.checkpoint.saver import Saver
from ..moe.checkpoint.state import Shard
from ..moe.config import ModelConfig
from ..moe.engines import make_engine
from ..moe.engines.base import StepMetrics
from ..moe.layout import Groups
from ..moe.sizing.counts import count_parameters, flops_per_token
from .config import RunConfig
from .data.loader import Loader
from .hardware import peak_flops
from .log import Listener, RunLog
from .summary import machine

VOCAB_MULTIPLE = 64
"""Vocabularies are padded to this: GEMM widths then fill whole tiles."""


class Training:
    """One rank's run from its start, or from the last complete checkpoint, to its end."""

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        listeners: list[Listener],
        events: EventWriter,
    ) -> None:
        """Build everything; collective over all ranks."""
        self.config, self.device, self.events = config, device, events
        self.groups = Groups(config.layout)
        dp = self.groups.dp
        self.log = RunLog(config.folder, listeners) if dp.rank == 0 else None
        self.loader = Loader(config.data, seed=config.seed, dp_rank=dp.rank, dp_size=dp.size)
        self.model_config = sized(config.model, self.loader.vocab_size)
        torch.manual_seed(config.seed)
        self.engine = make_engine(config.engine_options, self.groups)
        self.engine.setup(device)
        recompute = config.engine.recompute
        self.engine.build(build_model(self.model_config, self.groups, config.seed, recompute))
        self.saver = Saver(config.placed_checkpoint, dp.rank, dp.size, self._record)
        self._saved = self._resume()
        self._chaos = None
        if "MOELSTROM_CHAOS" in os.environ:
            from .chaos.hook import Hook

            self._chaos = Hook.from_env(dp.rank)

    def run(self) -> None:
        """Train to the last step, then save and evaluate."""
        self._record(self._describe_run())
        while self.engine.steps_done < self.config.steps:
            self._step()
            done = self.engine.steps_done
            if _due(self.config.checkpoint.interval, done):
                self._save()
            if _due(self.config.evaluation.interval, done) and done < self.config.steps:
                self._evaluate()
        if self._saved != self.engine.steps_done:
            self._save()
        self._evaluate()
        self.saver.close()
        self._record({"kind": "done", "step": self.engine.steps_done})
        if self.log:
            self.log.close()

    def _record(self, record: dict[str, Any]) -> None:
        if self.log:
            self.log(record)

    def _describe_run(self) -> dict[str, Any]:
        config = self.config
        return {
            "kind": "run",
            "step": self.engine.steps_done,
            "steps": config.steps,
            "ranks": self.groups.dp.size,
            "engine": config.engine.model_dump(),
            "layout": config.layout.model_dump(),
            "parameters": asdict(count_parameters(self.model_config)),
            **machine(self.device),
        }

    def _step(self) -> None:
        started = time.perf_counter()
        batches = self.loader.next()
        if self._chaos:
            self._chaos.before_step(self.engine.steps_done + 1, self.engine.model)
        metrics = self.engine.step(batches)
        step = self.engine.steps_done
        check_finite(step, metrics)
        if self.log:
            self._record(self._describe(step, metrics, time.perf_counter() - started))
            self._record_routing(step, metrics.expert_load)
        else:
            self.events.emit("step", step=step)

    def _describe(self, step: int, metrics: StepMetrics, seconds: float) -> dict[str, Any]:
        data = self.config.data
        tokens = data.global_batch_size * data.seq_len
        record = {
            "kind": "step",
            "step": step,
            "loss": metrics.loss,
            "aux_loss": metrics.aux_loss,
            "grad_norm": metrics.grad_norm,
            "lr": metrics.lr,
            "targets": metrics.tokens,
            "tokens_per_s": tokens / seconds,
            "step_s": seconds,
            "expert_balance": balance(metrics.expert_load),
        }
        peak = peak_flops(self.device)
        if peak:
            flops = flops_per_token(self.model_config, data.seq_len) * tokens
            record["mfu"] = flops / seconds / (peak * self.groups.dp.size)
        return record

    def _record_routing(self, step: int, load: torch.Tensor) -> None:
        """Each expert's tokens, from which `moelstrom bench` makes its all-to-all-v loads."""
        if load.numel() and _due(self.config.log_interval, step):
            self._record({"kind": "router", "step": step, "expert_load": load.tolist()})

    def _evaluate(self) -> None:
        losses = {}
        for domain in self.loader.domains:
            batches = list(self.loader.valid(domain, self.config.evaluation.batches))
            total, count = self.engine.evaluate(batches)
            losses[domain] = total / max(count, 1)
            # From every rank: a supervisor must not take a long evaluation for a hang.
            self.events.emit("evaluated", domain=domain)
        self._record({"kind": "eval", "step": self.engine.steps_done, "loss": losses})

    def _save(self) -> None:
        meta = {
            "data": self.loader.state(),
            "config": self.config.model_dump(mode="json"),
            "model": self.model_config.model_dump(mode="json"),
        }
        self._saved = self.engine.steps_done
        self.saver.save(self._saved, [*self.engine.export_state(), *self._random_state()], meta)

    def _random_state(self) -> list[Shard]:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return [
            Shard(f"rng/{self.groups.dp.rank}/{name}", (state.numel(),), 0, state)
            for name, state in states.items()
        ]

    def _resume(self) -> int:
        """Load the last complete checkpoint, if any; returns its step, else -1."""
        found = -1
        path = self.config.placed_checkpoint.path
        if self.groups.dp.rank == 0:
            folder = choose(path, lambda text: self._record({"kind": "note", "message": text}))
            found = Reader(folder).step if folder else -1
        chosen = torch.tensor(found, device=self.device)
        dist.broadcast(chosen, 0)
        step = int(chosen.item())
        if step >= 0:
            self._load(Reader(step_folder(Path(path), step)))
        return step

    def _load(self, reader: Reader) -> None:
        _check_same_model(reader.meta["model"], self.model_config)
        self.engine.import_state(reader)
        self.loader.load_state(reader.meta["data"])
        prefix = f"rng/{self.groups.dp.rank}"
        if f"{prefix}/cpu" in reader.tensors:
            torch.set_rng_state(reader.read(f"{prefix}/cpu"))
        if f"{prefix}/cuda" in reader.tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(reader.read(f"{prefix}/cuda"), self.device)
        self._record({"kind": "resume", "step": reader.step, "folder": str(reader.folder)})


def check_finite(step: int, metrics: StepMetrics) -> None:
    """Stop before a diverged state is saved: the update that a gradient without a finite norm made
    has spoilt the weights, even where the loss before it was finite."""
    for name, value in (("loss", metrics.loss), ("gradient norm", metrics.grad_norm)):
        if not math.isfinite(value):
            raise UserError(
                f"step {step}: the {name} is {value}; lower optimizer.lr, or raise "
                "schedule.warmup_steps, and resume from the last checkpoint"
            )


def sized(model: ModelConfig, tokens: int) -> ModelConfig:
    """The model with its vocabulary set for a tokenizer of `tokens`."""
    if model.vocab_size == 0:
        padded = -(-tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        return model.model_copy(update={"vocab_size": padded})
    if model.vocab_size < tokens:
        raise UserError(
            f"model.vocab_size: {model.vocab_size} is below the tokenizer's {tokens} tokens; "
            "raise it, or set 0 to fit"
        )
    return model


def balance(load: torch.Tensor) -> float:
    """Largest expert load over the mean of its layer, the worst layer's; 1 is even. `load`
    [layers, E]; 1 where there are no experts."""
    if load.numel() == 0:
        return 1.0
    share = load.double() / load.double().mean(dim=1, keepdim=True).clamp_min(1e-9)
    return share.max().item()


def _due(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def _check_same_model(saved: dict[str, Any], model: ModelConfig) -> None:
    present = model.model_dump(mode="json")
    for field, value in present.items():
        if saved.get(field) != value:
            raise UserError(
                f"model.{field}: the checkpoint has {saved.get(field)}, this run {value}; set it "
                "back, or give the run another output folder"
            )
