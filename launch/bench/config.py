"""What `moelstrom bench` takes: a benchmark's own fields, and how its workers are started."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from ... import UserError
from ...cluster.config import ClusterConfig
from ...collectives_bench.config import CollectivesConfig
from ...collectives_bench.hardware.config import HardwareConfig
from ...collectives_bench.schema import BenchReport
from ..config_errors import explain, load_yaml, set_value

Kind = Literal["collectives", "hardware"]
REPORT = "report.json"
COMPLETE = "complete"
"""How a report says that its run ended well."""
MAX_LOCAL = 8
"""Workers by default on a machine without GPUs, whatever its cores."""


class BenchCluster(ClusterConfig):
    """As for training; but a benchmark is not resumed, and its silence is short."""

    max_restarts: Literal[0] = 0
    heartbeat_timeout_s: Annotated[float, Field(ge=3)] = 10.0
    progress_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    hang_floor_s: Annotated[float, Field(gt=0)] = 86_400.0
    """A sweep's points say nothing of each other's times: `progress_timeout_s` alone decides."""


class Launch(BaseModel):
    """The fields that both benchmarks have beside their own."""

    nproc: Annotated[int, Field(ge=1, le=2**16)] | None = None
    """Workers. None: one for each GPU of this machine, else for each core (8 at most)."""
    output: str = ""
    """Folder of the report (empty: `runs/bench-KIND`)."""
    cluster: BenchCluster = BenchCluster()

    @property
    def ranks(self) -> int:
        """How many workers to start. UserError where a cluster's own size would be needed."""
        if self.cluster.launcher == "none":
            return 1
        if self.nproc is None and (self.cluster.address or os.environ.get("RAY_ADDRESS")):
            raise UserError(
                "nproc: is missing, and only you know how much of the cluster to measure; give "
                "--nproc N, one for each of its GPUs"
            )
        return self.nproc or _local_ranks()


class CollectivesRun(CollectivesConfig, Launch):
    """`moelstrom bench collectives`."""


class HardwareRun(HardwareConfig, Launch):
    """`moelstrom bench hardware`."""


Run = CollectivesRun | HardwareRun
RUNS: dict[Kind, type[Run]] = {"collectives": CollectivesRun, "hardware": HardwareRun}
Model = TypeVar("Model", bound=BaseModel)


def load(kind: Kind, source: str | None, overrides: list[str]) -> Run:
    """The run of a YAML file (none: all defaults) with `a.b=c` overrides.

    Raises UserError that lists every problem: field, value and fix.
    """
    values = load_yaml(Path(source)) if source else {}
    for override in overrides:
        set_value(values, override)
    run = checked(RUNS[kind], source or f"bench {kind}", values)
    if run.cluster.launcher == "none" and (run.nproc or 1) > 1:
        raise UserError(
            f"nproc: {run.nproc} workers need a launcher, but cluster.launcher is none; drop one "
            f"of the two, or start `torchrun --nproc-per-node {run.nproc} -m "
            f"moelstrom.launch.bench.worker {kind}`"
        )
    return run


def checked(model: type[Model], source: str, values: dict[str, Any]) -> Model:
    """`values` as a model. UserError lists every problem with them."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(source, error, model)) from None


def own_config(run: Run) -> CollectivesConfig | HardwareConfig:
    """The benchmark's part of a run; without the launch, whose environment may hold secrets."""
    model = CollectivesConfig if isinstance(run, CollectivesRun) else HardwareConfig
    return model.model_validate(run.model_dump(include=set(model.model_fields)))


def folder_of(kind: Kind, run: Run) -> Path:
    """Where the run's report goes."""
    return Path(run.output or f"runs/bench-{kind}")


def check_kind(report: BenchReport, kind: str, path: Path) -> None:
    """Refuse a network's report where a device's belongs, and the reverse."""
    if report.kind != kind:
        raise UserError(f"{path}: is a report of {report.kind}; give one of {kind}")


def _local_ranks() -> int:
    import torch

    return torch.cuda.device_count() or min(os.cpu_count() or 1, MAX_LOCAL)
