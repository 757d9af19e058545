"""The training loop: knows data, engine and checkpoints, and nothing of how they work."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist

from ... import UserError
from ...cluster.events import EventWriter, Stage
from ...moe.checkpoint.folder import move_aside, step_folder
from ...moe.checkpoint.replica.keeper import Keeper
from ...moe.checkpoint.saver import Saver
from ...moe.config import ModelConfig
from ...moe.engines import make_engine
from ...moe.engines.base import StepHooks, StepMetrics
from ...moe.grid import Grid
from ...moe.sizing.counts import count_parameters, flops_per_token
from ...moe.stages import CLOCK
from ...moe.state.shard import Shard
from ...moe.state.source import Source
from ..config import RunConfig
from ..data.loader import Loader
from .hardware import peak_flops
from .health import ADVICE, Fault, Health, RollBack, RollBackError, record_rollback, rollbacks
from .log import Listener, RunLog
from .preempt import Preemption
from .resume import check_same_model, find_start, random_seed
from .summary import machine

VOCAB_MULTIPLE = 64
"""Vocabularies are padded to this: GEMM widths then fill whole tiles."""
PARTS = ("data", "compute", "wait", "update")
"""The stages of a step."""
PHASE_FACTOR, PHASE_FLOOR_S = 10.0, 30.0
"""How long a phase may take, in times of the longest one so far, and at least."""


class Training:
    """One rank's run from its start, or from the last complete checkpoint, to its end."""

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        listeners: list[Listener],
        events: EventWriter,
        preemption: Preemption,
    ) -> None:
        """Build everything; collective over all ranks."""
        self.config, self.device, self.events = config, device, events
        self._preemption = preemption
        self._longest: dict[str, float] = {}
        self._built = False
        CLOCK.listener = self._tell_stage
        with self._phase("load"):
            self._build(listeners)
        self._built = True

    def _build(self, listeners: list[Listener]) -> None:
        config = self.config
        self.grid = Grid(config.layout)
        dp, world = self.grid.dp, self.grid.world
        self.log = RunLog(config.folder, listeners) if self.grid.writer else None
        self.loader = Loader(config.data, seed=config.seed, dp_rank=dp.rank, dp_size=dp.size)
        self.model_config = sized(config.model, self.loader.vocab_size)
        torch.manual_seed(config.seed)
        self.engine = make_engine(config.engine_options, self.grid)
        self.engine.setup(self.device)
        self.engine.build(self.model_config, config.seed)
        self.keeper = (
            Keeper(config.folder, world.rank, world.size, self._note)
            if config.checkpoint.replicas
            else None
        )
        self.saver = Saver(
            config.placed_checkpoint, world.rank, world.size, self._record, keeper=self.keeper
        )
        self.saver.attach(self.engine)
        self.health = Health(config.health)
        self._hooks = StepHooks(
            self.health.accept if self.health.asks else None, lambda: self._preemption.wanted
        )
        self._rollbacks: list[RollBack] = self._share(
            rollbacks(config.folder) if self.log else None
        )
        self.loader.pass_over([back.samples for back in self._rollbacks])
        self._saved = self._start = self._resume()
        self._chaos = None
        if "MOELSTROM_CHAOS" in os.environ:
            from ..chaos.hook import Hook

            self._chaos = Hook.from_env(world.rank)

    def run(self) -> bool:
        """Train to the last step, save and evaluate: True. False if SIGTERM came first and the
        state is saved. Raises RollBackError, on every rank, when a step asks for it."""
        self._record(self._describe_run())
        leave = self._agree(self._preemption.wanted)
        while not leave and self.engine.steps_done < self.config.steps:
            leave = self._step()
            done = self.engine.steps_done
            if leave or _due(self.config.checkpoint.interval, done):
                self._save()
            if self._evaluation_due(done) and not leave:
                self._evaluate()
        return self._finish(leave and self.engine.steps_done < self.config.steps)

    def _evaluation_due(self, done: int) -> bool:
        return _due(self.config.evaluation.interval, done) and done < self.config.steps

    def _finish(self, preempted: bool) -> bool:
        done = self.engine.steps_done
        if self._saved != done and not (preempted and done == 0):
            self._save()
        if not preempted:
            self._evaluate()
        with self._phase("save"):
            self._close(ended=not preempted)
        if preempted:
            text = f"step {done}: saved on SIGTERM; the same command goes on from here"
            self._tell({"kind": "preempted", "step": done, "message": text})
        else:
            self._record({"kind": "done", "step": done})
        if self.log:
            self.log.close()
        return not preempted

    def _close(self, ended: bool) -> None:
        """Wait for the last save; its copy in memory goes when the run has `ended`."""
        self.saver.close()
        if self.keeper:
            self.keeper.close(ended)

    def _agree(self, wanted: bool) -> bool:
        """Whether any rank wants it; collective."""
        wish = torch.tensor(int(wanted), device=self.device)
        dist.all_reduce(wish, op=dist.ReduceOp.MAX)
        return bool(wish.item())

    def _share(self, value: Any) -> Any:
        """Rank 0's value, everywhere; collective."""
        box = [value]
        dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
        return box[0]

    def _tell_stage(self, name: str) -> None:
        step = self.engine.steps_done + 1 if self._built else None
        self.events.stage(cast(Stage, name), step)

    @contextmanager
    def _phase(self, name: Literal["load", "evaluate", "save"]) -> Iterator[None]:
        """Something that takes longer than a step; the first may compile, and may take as long as
        anything may without progress."""
        longest = self._longest.get(name)
        limit = self.config.cluster.progress_timeout_s
        if longest is not None and name == "evaluate":
            limit = max(PHASE_FLOOR_S, PHASE_FACTOR * longest)
        self.events.emit("phase", name=name, limit_s=limit)
        began = time.perf_counter()
        with CLOCK.stage(name):
            yield
        self._longest[name] = max(longest or 0.0, time.perf_counter() - began)
        self.events.emit("phase", name="train", limit_s=0)

    def _record(self, record: dict[str, Any]) -> None:
        if self.log:
            self.log(record)

    def _note(self, text: str) -> None:
        self._record({"kind": "note", "message": text})

    def _tell(self, record: dict[str, Any]) -> None:
        """Record it on rank 0, which tells its supervisor too, and tell the other ranks'."""
        if self.log:
            self.log(record)
        else:
            self.events.emit(**record)

    def _describe_run(self) -> dict[str, Any]:
        config = self.config
        return {
            "kind": "run",
            "step": self.engine.steps_done,
            "steps": config.steps,
            "ranks": self.grid.world.size,
            "engine": config.engine.model_dump(),
            "layout": config.layout.model_dump(),
            "parameters": asdict(count_parameters(self.model_config)),
            **machine(self.device),
        }

    def _step(self) -> bool:
        """One optimizer step; returns whether some rank wants to leave after it."""
        started = time.perf_counter()
        CLOCK.take()
        with CLOCK.stage("data"):
            self.loader.skip()
            first = self.loader.position
            batches = self.loader.next()
        samples = first, self.loader.position
        with CLOCK.stage("compute"):
            if self._chaos:
                self._chaos.before_step(self.engine.steps_done + 1, self.engine.model)
            metrics = self.engine.step(batches, self._hooks)
        step, seconds = self.engine.steps_done, time.perf_counter() - started
        self._judge(step, metrics, samples)
        record: dict[str, Any] = {"kind": "step", "step": step, "step_s": seconds}
        taken = CLOCK.take()
        record["parts"] = {part: round(taken.get(part, 0.0), 6) for part in PARTS}
        if self.log:
            record |= {"samples": list(samples), **self._describe(metrics, seconds)}
        self._tell(record)
        if self.log:
            self._record_routing(step, metrics.expert_load)
        return metrics.leave

    def _judge(self, step: int, metrics: StepMetrics, samples: tuple[int, int]) -> None:
        """Act on a step that went wrong; every rank decides the same."""
        fault = self.health.fault(metrics.loss, metrics.grad_norm)
        if fault is None:
            self.health.good(metrics.loss, metrics.grad_norm)
        elif fault.policy == "stop":
            raise UserError(f"step {step}: {fault.text}; {ADVICE}")
        elif fault.policy == "rollback":
            self._roll_back(step, fault, samples)
        else:
            message = self.health.skipped(step, fault)
            self._tell({"kind": "skipped", "step": step, "message": message})

    def _roll_back(self, step: int, fault: Fault, samples: tuple[int, int]) -> None:
        """Nothing after the last checkpoint is kept: no save has been started since the fault."""
        limit = self.config.health.max_rollbacks
        if len(self._rollbacks) >= limit:
            raise UserError(
                f"step {step}: {fault.text}, after {limit} roll-backs (health.max_rollbacks); "
                f"{ADVICE}"
            )
        self._close(ended=False)
        where = "the last checkpoint"
        if self.log:
            behind = self._start if self._start_is_bad(step) else None
            record_rollback(self.config.folder, RollBack(step, samples, behind), fault.text)
            if behind is not None:
                where = self._set_aside(behind)
        text = (
            f"step {step}: {fault.text}: back to {where}, and past samples {samples[0]} to "
            f"{samples[1] - 1}"
        )
        self._tell({"kind": "rolled_back", "step": step, "message": text})
        if self.log:
            self.log.close()
        # A rank that leaves ends the others: not before the note is on disk.
        dist.barrier()
        raise RollBackError(text)

    def _set_aside(self, step: int) -> str:
        """Rename the checkpoint of `step`, which spoils every step after it; says what is used."""
        folder = step_folder(Path(self.config.placed_checkpoint.path), step)
        try:
            return f"the checkpoint before step {step}, now {move_aside(folder)}"
        except OSError as error:
            return f"the last checkpoint ({folder} should be set aside, but {error.strerror})"

    def _start_is_bad(self, step: int) -> bool:
        """Whether the checkpoint itself is what went wrong: the step after it did, twice, on
        different samples."""
        last = self._rollbacks[-1] if self._rollbacks else None
        return self._start == step - 1 >= 0 and last is not None and last.step == step

    def _describe(self, metrics: StepMetrics, seconds: float) -> dict[str, Any]:
        data = self.config.data
        tokens = data.global_batch_size * data.seq_len
        record: dict[str, Any] = {
            "lr": metrics.lr,
            "targets": metrics.tokens,
            "tokens_per_s": tokens / seconds,
            "expert_balance": balance(metrics.expert_load),
        }
        if metrics.skipped:
            # They may be no numbers, which JSON has no words for.
            record["skipped"] = True
        else:
            keys = ("loss", "aux_loss", "grad_norm")
            record |= {key: getattr(metrics, key) for key in keys}
        peak = peak_flops(self.device)
        if peak:
            flops = flops_per_token(self.model_config, data.seq_len) * tokens
            record["mfu"] = flops / seconds / (peak * self.grid.world.size)
        return record

    def _record_routing(self, step: int, loads: list[torch.Tensor]) -> None:
        """Each expert's tokens, from which `moelstrom bench` makes its all-to-all-v loads."""
        if loads and _due(self.config.log_interval, step):
            found = [load.tolist() for load in loads]
            self._record({"kind": "router", "step": step, "expert_load": found})

    def _evaluate(self) -> None:
        losses = {}
        with self._phase("evaluate"):
            for domain in self.loader.domains:
                batches = list(self.loader.valid(domain, self.config.evaluation.batches))
                total, count = self.engine.evaluate(batches)
                losses[domain] = total / max(count, 1)
        self._record({"kind": "eval", "step": self.engine.steps_done, "loss": losses})

    def _save(self) -> None:
        meta = {
            "data": self.loader.state(),
            "config": self.config.model_dump(mode="json"),
            "model": self.model_config.model_dump(mode="json"),
            "skipped": self.engine.skipped,
            "health": self.health.state(),
        }
        self._saved = self.engine.steps_done
        shards = [*self.engine.export_state(), *self._random_state()]
        with self._phase("save"):
            self.saver.save(self._saved, shards, meta)

    def _random_state(self) -> list[Shard]:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return [
            Shard(f"rng/{self.grid.world.rank}/{name}", (state.numel(),), 0, state)
            for name, state in states.items()
        ]

    def _resume(self) -> int:
        """Load the last complete checkpoint, or `checkpoint.load`; returns the step of the former,
        else -1."""
        config = self.config.placed_checkpoint
        below = self._rollbacks[-1].behind if self._rollbacks else None
        source, own = find_start(config, self.model_config, self.keeper, below, self._note)
        if source is not None:
            self._load(source)
        return source.step if source is not None and own else -1

    def _load(self, source: Source) -> None:
        check_same_model(source.meta.get("model"), self.model_config)
        self.engine.import_state(source)
        if source.meta.get("data") is not None:
            self.loader.load_state(source.meta["data"])
        elif source.step:
            self._note(f"{source.folder}: no data position in it; reading from the first sample")
        self.health.load_state(source.meta.get("health", {}))
        self._load_random(source)
        self._record({"kind": "resume", "step": source.step, "folder": str(source.folder)})

    def _load_random(self, source: Source) -> None:
        rank, cuda = self.grid.world.rank, self.device.type == "cuda"
        if f"rng/{rank}/cpu" in source.tensors:
            torch.set_rng_state(source.read(f"rng/{rank}/cpu"))
        else:
            torch.manual_seed(random_seed(self.config.seed, rank, source.step))
        if cuda and f"rng/{rank}/cuda" in source.tensors:
            torch.cuda.set_rng_state(source.read(f"rng/{rank}/cuda"), self.device)


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


def balance(loads: list[torch.Tensor]) -> float:
    """Largest expert load over the mean of its layer, the worst layer's; 1 is even. `loads`: of
    each layer [E]; 1 where there are no experts."""
    shares = [load.double() / load.double().mean().clamp_min(1e-9) for load in loads]
    return max((share.max().item() for share in shares), default=1.0)


def _due(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
