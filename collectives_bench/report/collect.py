"""A run's events folded into its report, whose file is always nearly up to date."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..schema import BenchReport, Collective, Hardware, Host, RankTimes, Skip

SAVE_INTERVAL_S = 2.0


class Collector:
    """Takes a worker's events and keeps `report`, and the JSON at `path`, by them.

    Kinds: "header" (report: a BenchReport's fields without measurements), "measurement" and "skip"
    (value: a Collective, Hardware or Skip as a dict), "step" (what: what comes next); others are
    passed over. The file is replaced by a header, then at most every `SAVE_INTERVAL_S`, and by
    `end`; before that an earlier run's stays.
    """

    def __init__(
        self, report: BenchReport, path: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`report` says what is known before the first worker has started."""
        self.report = report
        self.began = False
        """Whether there was a header."""
        self.at = "the start"
        """What is being measured."""
        self._path, self._clock = path, clock
        self._saved = 0.0

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        take = getattr(self, f"_take_{event['kind']}", None)
        if take is None:
            return
        take(event)
        if self.began and self._clock() - self._saved >= SAVE_INTERVAL_S:
            self._save()

    def end(self, ended: str) -> BenchReport:
        """Note how the run ended, and save it."""
        self.report.ended = ended
        self._save()
        return self.report

    def _take_header(self, event: Mapping[str, Any]) -> None:
        report, found = self.report, event["report"]
        report.backend, report.world_size = found["backend"], found["world_size"]
        report.hosts = [Host(**host) for host in found["hosts"]]
        report.versions = dict(found["versions"])
        report.config = dict(found["config"])
        self.began = True
        self._save()

    def _take_step(self, event: Mapping[str, Any]) -> None:
        self.at = event["what"]

    def _take_skip(self, event: Mapping[str, Any]) -> None:
        self.report.skipped.append(Skip(**event["value"]))

    def _take_measurement(self, event: Mapping[str, Any]) -> None:
        value = event["value"]
        if "bench" in value:
            self.report.hardware.append(Hardware(**value))
            return
        per_rank = [RankTimes(**times) for times in value["per_rank"]]
        self.report.collectives.append(Collective(**{**value, "per_rank": per_rank}))

    def _save(self) -> None:
        self.report.write(self._path)
        self._saved = self._clock()
