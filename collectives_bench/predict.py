"""Communication time of a training step on a layout, from a network's fits.

The step is that of the native engine with ZeRO: every gradient bucket is reduce-scattered over the
ranks that hold copies, the updated weights are all-gathered, and every MoE layer exchanges its
tokens twice in the forward and twice in the backward pass (and twice more where the forward pass
is recomputed). Calls add up: the engine queues them one after the other on one network. The few
small all-reduces of a step (loss, gradient norm) are left out. At counts that nobody measured it
assumes a fabric without contention beyond what the fits hold: no small cluster sees the upper
switches of a large one.
"""

from dataclasses import dataclass

from .. import UserError
from .network import Group, MissingFitError, Network

FP32 = 4
INT64 = 8


@dataclass(frozen=True)
class StepVolume:
    """What one rank communicates in a step.

    `dense` parameters have copies on every rank, `experts` is the expert parameters that one rank
    holds; `width` is bytes of a weight or an activation. `tokens` are one rank's in a micro-batch.
    `imbalance` is the busiest rank's share of an exchange over the mean.
    """

    dense: int
    experts: int
    width: int
    bucket_bytes: int
    moe_layers: int
    num_experts: int
    top_k: int
    hidden: int
    tokens: int
    microbatches: int
    sharded: bool = True
    recompute: bool = False
    imbalance: float = 1.0


@dataclass(frozen=True)
class RankLayout:
    """`dp` data-parallel ranks, split into groups of `ep` for the experts, `per_node` on a node."""

    dp: int
    ep: int
    per_node: int


@dataclass(frozen=True)
class Call:
    """`times` collectives of one kind: `bytes` as `Network.seconds` takes them."""

    part: str
    op: str
    bytes: float
    group: Group
    times: float


@dataclass(frozen=True)
class Prediction:
    """Seconds of a step's communication by part: gradients, weights, tokens."""

    parts: dict[str, float]

    @property
    def total_s(self) -> float:
        """All parts, one after the other."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class KnownParts:
    """A prediction as far as the fits go: a part is None where one is missing (`missing`)."""

    parts: dict[str, float | None]
    missing: tuple[str, ...]

    @property
    def total_s(self) -> float | None:
        """All parts, one after the other; None where one is missing."""
        found = [seconds for seconds in self.parts.values() if seconds is not None]
        return sum(found) if len(found) == len(self.parts) else None


def calls(step: StepVolume, layout: RankLayout) -> list[Call]:
    """The collectives of a step. UserError where the layout does not fit the nodes."""
    dp, ep, edp = _groups(layout)
    found = _reductions(step, step.dense, dp) + _reductions(step, step.experts, edp)
    passes = 6 if step.recompute else 4
    exchanges = step.moe_layers * step.microbatches
    rows = step.tokens * step.top_k * step.hidden * step.width * step.imbalance
    counts = INT64 * step.num_experts
    found.append(Call("tokens", "all_to_all_v", rows, ep, passes * exchanges))
    found.append(Call("tokens", "all_to_all", counts, ep, (passes - 2) / 2 * exchanges))
    return [c for c in found if c.group.size > 1 and c.times and c.bytes]


def _groups(layout: RankLayout) -> tuple[Group, Group, Group]:
    """All ranks; one expert-parallel group; ranks with copies of the same experts."""
    dp, ep, node = layout.dp, layout.ep, min(layout.per_node, layout.dp)
    for name, size in (("ep", ep), ("per_node", node)):
        if dp % size:
            raise UserError(f"layout: {name} {size} does not divide dp {dp}; give a divisor")
    if max(ep, node) % min(ep, node):
        raise UserError(
            f"layout: ep {ep} and per_node {node} do not divide each other; give an ep that "
            "divides a node, or whole nodes"
        )
    local = min(ep, node)
    return (
        Group(dp, node),
        Group(ep, local, dp // ep),
        Group(dp // ep, max(1, node // ep), ep),
    )


def _reductions(step: StepVolume, parameters: int, group: Group) -> list[Call]:
    """Full buckets and the last, partly full one."""
    each = step.bucket_bytes // FP32
    full, rest = divmod(parameters, each)
    found = []
    for elements, times in ((each, full), (rest, 1)):
        reduce = "reduce_scatter" if step.sharded else "all_reduce"
        found.append(Call("gradients", reduce, FP32 * elements, group, times))
        if step.sharded:
            found.append(Call("weights", "all_gather", step.width * elements, group, times))
    return found


def predict(network: Network, step: StepVolume, layout: RankLayout) -> Prediction:
    """Time the step's collectives, one after the other.

    UserError where the layout does not fit the nodes; MissingFitError where a fit is missing.
    """
    found = known_parts(network, step, layout)
    if found.missing:
        raise MissingFitError(found.missing[0])
    return Prediction({part: seconds or 0.0 for part, seconds in found.parts.items()})


def known_parts(network: Network, step: StepVolume, layout: RankLayout) -> KnownParts:
    """The same as far as the network's fits go. UserError where the layout does not fit."""
    parts: dict[str, float | None] = {"gradients": 0.0, "weights": 0.0, "tokens": 0.0}
    missing: list[str] = []
    for call in calls(step, layout):
        so_far = parts[call.part]
        try:
            seconds = call.times * network.seconds(call.op, call.bytes, call.group)
            parts[call.part] = None if so_far is None else so_far + seconds
        except MissingFitError as error:
            # A sum without one of its terms would look like an answer.
            parts[call.part] = None
            missing.append(str(error))
    return KnownParts(parts, tuple(dict.fromkeys(missing)))
