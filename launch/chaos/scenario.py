"""Which faults a run meets, and when: a YAML file, or a draw from a seed."""

import random
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from ... import UserError
from ...moe.config import Positive, Section
from ..config_errors import explain, load_yaml, short

Rank = Annotated[int, Field(ge=0, lt=2**16)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
MAX_DELAY_S = 0.1
"""A drawn kill falls up to this long after its step's report: into a step, or into a save."""


class PlannedFault(Section):
    """What all faults have: the moment, by step or by time; exactly one of the two."""

    restarts: ClassVar[bool] = True
    """Whether the group has to be started again."""
    at_step: Positive | None = None
    """As soon as rank 0 has done this step (hang, nan and slow: in this step)."""
    after_s: Seconds | None = None
    """Seconds after the first process started."""


class Kill(PlannedFault):
    """SIGKILL to a rank."""

    kind: Literal["kill"] = "kill"
    rank: Rank = 0
    delay_s: Annotated[float, Field(ge=0, le=60)] = 0.0
    """Between the step's report and the signal."""


class Stop(PlannedFault):
    """SIGSTOP to a rank: it gives no sign of life, and its sockets stay open."""

    kind: Literal["stop"] = "stop"
    rank: Rank = 0
    delay_s: Annotated[float, Field(ge=0, le=60)] = 0.0


class Hang(PlannedFault):
    """A rank never comes back from its step; its process lives on."""

    kind: Literal["hang"] = "hang"
    rank: Rank = 0


class Nan(PlannedFault):
    """One gradient of a rank is not a number in one step."""

    restarts: ClassVar[bool] = False
    kind: Literal["nan"] = "nan"
    rank: Rank = 0


class Slow(PlannedFault):
    """A rank takes `factor` times as long, for `steps` steps."""

    restarts: ClassVar[bool] = False
    kind: Literal["slow"] = "slow"
    rank: Rank = 0
    factor: Annotated[float, Field(gt=1, le=1000)] = 4.0
    steps: Positive = 20


class Corrupt(PlannedFault):
    """One bit of the newest complete checkpoint flips, then a rank is killed. Waits until there are
    two checkpoints: a run does not start over when its only one is damaged."""

    kind: Literal["corrupt"] = "corrupt"
    rank: Rank = 0
    file: Literal["tensors", "manifest"] = "tensors"


class DiskFull(PlannedFault):
    """The file system of the checkpoints has no space left for a while. Needs one with less than
    1 GiB free (a small tmpfs, say): nobody's whole disk is filled."""

    restarts: ClassVar[bool] = False
    kind: Literal["disk_full"] = "disk_full"
    duration_s: Seconds = 4.0


class NodeLost(PlannedFault):
    """The network of a node is cut by the scenario's `cut` and comes back by `heal`. Waits until a
    worker runs there."""

    kind: Literal["node_lost"] = "node_lost"
    node: Annotated[str, Field(min_length=1)]
    """Its address in the Ray cluster."""
    duration_s: Seconds = 30.0


AnyFault = Kill | Stop | Hang | Nan | Slow | Corrupt | DiskFull | NodeLost
KINDS: dict[str, type[AnyFault]] = {
    "kill": Kill,
    "stop": Stop,
    "hang": Hang,
    "nan": Nan,
    "corrupt": Corrupt,
    "disk_full": DiskFull,
    "slow": Slow,
    "node_lost": NodeLost,
}
WEIGHTS = {"kill": 4.0, "stop": 2.0, "hang": 2.0, "corrupt": 1.0, "slow": 1.0, "nan": 1.0}
"""Of a draw; a full disk and a lost node need what not every machine has, so they are asked for."""


class Draw(Section):
    """Faults out of a seed, the first after `spacing` steps, each at least half of that on;
    node_lost once at most."""

    faults: Annotated[int, Field(ge=1, le=10_000)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    spacing: Annotated[int, Field(ge=4, le=10**6)] = 40
    weights: dict[str, Annotated[float, Field(ge=0)]] = WEIGHTS
    node: str = ""
    """The address of the one that node_lost cuts."""
    lost_s: Seconds = 30.0
    """How long it stays away."""
    cut: tuple[str, ...] = ()
    heal: tuple[str, ...] = ()


class Scenario(Section):
    """All faults of a run, in the order of their steps."""

    faults: tuple[AnyFault, ...] = ()
    cut: tuple[str, ...] = ()
    """Command that cuts a node's network; `{node}` stands for its address."""
    heal: tuple[str, ...] = ()
    """Command that undoes it."""


def load(path: Path) -> Scenario:
    """The scenario in a YAML file. UserError names each field, its value and the fix."""
    values = load_yaml(path)
    entries = values.pop("faults", [])
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: faults: {short(entries)} lists no fault; write `- kind: kill`")
    faults = tuple(_fault(f"{path}: faults.{i}", entry) for i, entry in enumerate(entries))
    return _checked(str(path), {**values, "faults": faults})


def draw(plan: Draw, world_size: int) -> Scenario:
    """The faults of a seed for `world_size` ranks; the same seed gives the same ones.

    UserError for a kind that is none, or that lacks what it needs.
    """
    _check_weights(plan)
    choice, faults, weights = random.Random(plan.seed), [], dict(plan.weights)
    for index in range(plan.faults):
        kind = choice.choices(list(weights), list(weights.values()))[0]
        if kind == "node_lost" and sum(weights.values()) > weights[kind]:
            weights[kind] = 0.0  # Its ranks stay where they went, so there may be none to lose.
        step = plan.spacing * (index + 1) + choice.randrange(plan.spacing // 2)
        faults.append(_drawn(kind, step, plan, choice, world_size))
    return _checked("--random", {"faults": faults, "cut": plan.cut, "heal": plan.heal})


def _drawn(
    kind: str, step: int, plan: Draw, choice: random.Random, world_size: int
) -> dict[str, Any]:
    fields: dict[str, Any] = {"kind": kind, "at_step": step}
    known = KINDS[kind].model_fields
    if "rank" in known:
        fields["rank"] = choice.randrange(world_size)
    if "delay_s" in known:
        fields["delay_s"] = round(choice.uniform(0, MAX_DELAY_S), 4)
    if "file" in known:
        fields["file"] = choice.choice(["tensors", "manifest"])
    if "steps" in known:
        fields["steps"] = plan.spacing
    if "node" in known:
        fields |= {"node": plan.node, "duration_s": plan.lost_s}
    return fields


def _check_weights(plan: Draw) -> None:
    strange = sorted(set(plan.weights) - set(KINDS))
    if strange:
        raise UserError(f"weights: no kind {strange[0]!r}; choose from {', '.join(KINDS)}")
    if not any(plan.weights.values()):
        raise UserError("weights: no kind has a weight above 0; give one")
    if plan.weights.get("node_lost") and not plan.node:
        raise UserError("weights: node_lost needs the address of the node to cut; give `node`")


def _fault(where: str, entry: Any) -> AnyFault:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{where}.kind: {short(kind)} does not fit; give {', '.join(KINDS)}")
    model = KINDS[kind]
    try:
        return model.model_validate(entry)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(where, error, model)}") from None


def _checked(source: str, values: dict[str, Any]) -> Scenario:
    try:
        scenario = Scenario.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(source, error, Scenario)}") from None
    for index, fault in enumerate(scenario.faults):
        _check_moment(f"{source}: faults.{index}", fault)
    if any(fault.kind == "node_lost" for fault in scenario.faults) and not (
        scenario.cut and scenario.heal
    ):
        raise UserError(f"{source}: node_lost needs `cut` and `heal`, two commands; give both")
    return scenario


def _check_moment(where: str, fault: AnyFault) -> None:
    if (fault.at_step is None) == (fault.after_s is None):
        raise UserError(f"{where}: give one of at_step and after_s")


def check(scenario: Scenario, world_size: int, max_restarts: int) -> None:
    """Refuse what could not run on `world_size` ranks with `max_restarts`. Raises UserError."""
    for index, fault in enumerate(scenario.faults):
        rank = getattr(fault, "rank", 0)
        if rank >= world_size:
            raise UserError(
                f"faults.{index}.rank: {rank} is none of the run's {world_size} ranks; give "
                f"{world_size - 1} or less"
            )
    # A NaN too, where the policy is to roll back.
    needed = sum(fault.restarts or fault.kind == "nan" for fault in scenario.faults)
    if needed > max_restarts:
        raise UserError(
            f"cluster.max_restarts: {max_restarts} would end the run before its {needed} faults "
            f"are over; add --set cluster.max_restarts={needed}"
        )
