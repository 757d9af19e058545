"""The configuration section that the cluster layer owns."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class ClusterConfig(BaseModel):
    """How workers are started and watched."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    launcher: Literal["ray", "none"] = "ray"
    """`none`: this process is the one worker."""
    address: str | None = None
    """A running Ray cluster (`auto` or host:port); nothing starts a local one."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | None = None
    """Nothing: one where the cluster has GPUs, else none."""
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Ray placement group strategy."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    heartbeat_timeout_s: Annotated[float, Field(ge=3)] = 30.0
    """A worker process without a sign of life for this long (stopped, lost) is taken for dead."""
    progress_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """A worker that lives but reports no step for this long (hung) is taken for dead."""
    env: dict[str, str] = {}
    """Extra environment of every worker."""
