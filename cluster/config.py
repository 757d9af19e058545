"""The configuration section that the cluster layer owns."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticKnownError

from .kinds import CLUSTERS
from .secrets import in_clear


class ClusterConfig(BaseModel):
    """How workers are started and watched."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    launcher: str = "ray"
    """A kind of cluster, ours (`ray`) or another package's; `none`: this process is the one
    worker."""
    address: str | None = None
    """A running Ray cluster (`auto` or host:port); nothing starts a local one."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | None = None
    """Nothing: one where the cluster has GPUs, else none."""
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Ray placement group strategy."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Restarts after faults within `restart_window_s`; one more fault ends the run. Roll-backs and
    changes of size do not count."""
    restart_window_s: Annotated[float, Field(ge=0)] = 3600.0
    """0: the whole run."""
    heartbeat_timeout_s: Annotated[float, Field(ge=2)] = 5.0
    """A worker process without a sign of life for this long (stopped, lost) is taken for dead."""
    progress_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """A worker that lives but reports nothing for this long, also before its first step, is taken
    for hung; a phase that it announces may take longer."""
    hang_factor: Annotated[float, Field(gt=1)] = 10.0
    """After three steps, a rank without a step for this many of its median steps is hung."""
    hang_floor_s: Annotated[float, Field(gt=0)] = 5.0
    """But never sooner than this."""
    straggler_factor: Annotated[float, Field(gt=1)] = 1.5
    """A rank is named when its own work takes this many times its peers' over 20 steps."""
    elastic: bool = False
    """After a loss, go on with fewer workers when the lost ones stay away; grow when they return.
    The global batch stays, by gradient accumulation."""
    min_workers: Annotated[int, Field(ge=1)] = 1
    """The smallest elastic group."""
    rejoin_wait_s: Annotated[float, Field(ge=0)] = 10.0
    """How long an elastic restart waits for room for all before it goes on smaller."""
    spare_workers: Annotated[int, Field(ge=0)] = 0
    """Workers' places to hold idle, on other nodes where possible: they replace lost ones."""
    preempt_grace_s: Annotated[float, Field(ge=0)] = 60.0
    """After SIGTERM the workers have this long to save and exit before they are killed."""
    env: dict[str, str] = {}
    """Extra environment of every worker. `env:NAME` and `file:PATH` stand for a variable and a file
    of the worker's node: the way for secrets."""

    @field_validator("launcher")
    @classmethod
    def _is_a_kind(cls, name: str) -> str:
        if name != "none" and name not in CLUSTERS:
            *names, last = [repr(kind) for kind in (*CLUSTERS, "none")]
            raise PydanticKnownError("literal_error", {"expected": f"{', '.join(names)} or {last}"})
        return name

    @model_validator(mode="after")
    def _secrets_are_references(self) -> "ClusterConfig":
        names = in_clear(self.env)
        if names:
            raise ValueError(
                f"env holds {names[0]} in clear, and configs and checkpoints would keep it; write "
                f"`{names[0]}: env:NAME` or `file:PATH`, which are read where the worker starts"
            )
        return self

    @model_validator(mode="after")
    def _losses_need_freedom(self) -> "ClusterConfig":
        if (self.spare_workers or self.elastic) and self.strategy.startswith("STRICT"):
            raise ValueError("elastic and spare_workers need strategy PACK or SPREAD")
        return self
