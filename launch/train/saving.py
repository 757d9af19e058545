"""The state of a run on its way to a checkpoint and back."""

from typing import Any

import torch

from ...moe.checkpoint.replica.keeper import Keeper
from ...moe.checkpoint.saver import Saver
from ...moe.state.source import Source
from ..config import RunConfig
from .build import RankParts
from .channel import Channel
from .health import Health
from .random_state import load_random_state, random_state
from .records import ResumeRecord, from_json
from .replan import changed_plan, check_steps_left
from .resume import check_same_model, find_start, handed_on


class SavedState:
    """Saves and loads one rank's part of everything that decides how a run goes on."""

    def __init__(
        self,
        config: RunConfig,
        parts: RankParts,
        health: Health,
        channel: Channel,
        device: torch.device,
    ) -> None:
        """Collective."""
        self._config, self._parts, self._health = config, parts, health
        self._channel, self._device = channel, device
        rank, size = parts.grid.world.rank, parts.grid.world.size
        self._rank = rank
        self._keeper = (
            Keeper(config.folder, rank, size, channel.note) if config.checkpoint.replicas else None
        )
        self._saver = Saver(config.placed_checkpoint, rank, size, self._record, keeper=self._keeper)
        self._saver.attach(parts.engine)
        self.start = -1
        """Step of the run's own checkpoint that this start went on from; -1: none."""
        self.saved = -1
        """Step of the newest save."""
        self._handed_on: dict[str, Any] = {}

    def _record(self, event: dict[str, Any]) -> None:
        record = from_json(event)
        if record:
            self._channel.record(record)

    def resume(self, below: int | None) -> None:
        """Load the last complete checkpoint, of a copy in memory one below `below`, or
        `checkpoint.load`; collective."""
        config = self._config.placed_checkpoint
        model, note = self._parts.model, self._channel.note
        source, own = find_start(config, model, self._keeper, below, note)
        if source is not None:
            self._load(source)
            self.start = self.saved = source.step if own else -1
        self._saver.started(self.start)

    def _load(self, source: Source) -> None:
        parts = self._parts
        check_same_model(source.meta.get("model"), parts.model)
        check_steps_left(self._config, source.step)
        change = changed_plan(source.meta.get("config") or {}, self._config, source.step)
        if change:
            self._channel.note(change)
        parts.engine.import_state(source)
        if source.meta.get("data") is not None:
            parts.loader.load_state(source.meta["data"])
        elif source.step:
            self._channel.note(
                f"{source.folder}: no data position in it; reading from the first sample"
            )
        self._health.load_state(source.meta.get("health", {}))
        self._handed_on = handed_on(source.meta)
        load_random_state(source, self._rank, self._device, self._config.seed)
        self._channel.record(ResumeRecord(step=source.step, folder=str(source.folder)))

    def save(self) -> None:
        """Start a save of the present step; it goes on behind training. Collective."""
        parts = self._parts
        meta = {
            "data": parts.loader.state(),
            "config": self._config.model_dump(mode="json"),
            "model": parts.model.model_dump(mode="json"),
            "skipped": parts.engine.skipped,
            "health": self._health.state(),
            **self._handed_on,
        }
        self.saved = parts.engine.steps_done
        shards = [*parts.engine.export_state(), *random_state(self._rank, self._device)]
        with self._channel.phase("save"):
            self._saver.save(self.saved, shards, meta)

    def close(self, ended: bool) -> None:
        """Wait for the last save; its copy in memory goes when the run has `ended`."""
        self._saver.close()
        if self._keeper:
            self._keeper.close(ended)
