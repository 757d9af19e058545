"""A step's communication for the sizing adviser: from measured fits, or from data sheets."""

import math
from dataclasses import dataclass

from ...collectives_bench.fit import fit_report
from ...collectives_bench.network import Group, Network
from ...collectives_bench.predict import RankLayout, StepVolume, predict
from ...collectives_bench.schema import BenchReport
from ...kernels.targets import Target
from ...moe.config import EngineConfig, LayoutConfig, ModelConfig
from ...moe.sizing.communication import Traffic
from ...moe.sizing.counts import count_parameters
from ...moe.sizing.memory import WIDTHS
from ...moe.sizing.work import expert_layers

LINKS = {"gfx90a": 50e9, "gfx942": 64e9, "gfx950": 76.8e9}
"""Bytes/s of one xGMI link in one direction, and every pair of a node's GPUs has one (MI300X: arXiv
2511.17127; the others by data sheet)."""
SWITCHES = {"sm80": 300e9, "sm90": 450e9, "sm100": 900e9}
"""Bytes/s of a GPU into its node's NVSwitch in one direction (data sheets)."""
NIC_RATE = 50e9
"""Bytes/s of a GPU's own 400 Gbit/s NIC (arXiv 2511.17127's nodes)."""
SHARE = 0.8
"""Of a link's rate that a collective reaches; our assumption."""
HOP_S, NIC_HOP_S = 5e-6, 15e-6
"""Latency of a message inside a node and between nodes; our assumption."""


class SheetNetwork(Network):
    """A node's links by its GPU's data sheet, and a NIC for each GPU."""

    def __init__(self, target: Target) -> None:
        super().__init__(())
        self.target = target

    def seconds(self, op: str, size: float, group: Group) -> float:
        """Latency of the messages and the bytes over the slowest link. A reduction or gathering
        runs in its node first, so that a NIC carries a shard; an all-to-all's pieces each go their
        own way. Both stages overlap."""
        if group.size == 1 or size <= 0:
            return 0.0
        local, nodes = group.local, group.size // group.local
        inside, outside = (local - 1) * size / group.size, (nodes - 1) * size / group.size
        if op.startswith("all_to_all"):
            outside *= local
        else:
            inside *= nodes
        slow = (nodes - 1) * NIC_HOP_S + outside / (SHARE * NIC_RATE)
        return max(slow, (local - 1) * HOP_S + inside / self._local_rate(local))

    def _local_rate(self, ranks: int) -> float:
        """Per-GPU bandwidth with `ranks` of a node taking part: (n - 1) links, or the switch."""
        if self.target.name in LINKS:
            return SHARE * LINKS[self.target.name] * max(1, ranks - 1)
        return SHARE * SWITCHES[self.target.name]


@dataclass(frozen=True)
class Predicted:
    """`collectives_bench.predict` over a network, for nodes of `per_node` ranks."""

    network: Network
    per_node: int
    engine: EngineConfig
    label: str

    def predict(
        self,
        model: ModelConfig,
        layout: LayoutConfig,
        tokens: int,
        microbatches: int,
        recompute: bool,
    ) -> Traffic:
        """One step. UserError where the layout does not fit the nodes, or a fit is missing."""
        step, ranks = self.question(model, layout, tokens, microbatches, recompute)
        parts = predict(self.network, step, ranks).parts
        return Traffic(parts["gradients"], parts["weights"], parts["tokens"])

    def question(
        self,
        model: ModelConfig,
        layout: LayoutConfig,
        tokens: int,
        microbatches: int,
        recompute: bool,
    ) -> tuple[StepVolume, RankLayout]:
        """What one rank communicates in a step, and among whom."""
        counts = count_parameters(model)
        step = StepVolume(
            dense=counts.total - counts.experts,
            experts=counts.experts // layout.ep,
            width=WIDTHS[self.engine.precision],
            bucket_bytes=self.engine.bucket_mb << 20,
            moe_layers=sum(layer.count for layer in expert_layers(model, tokens)),
            num_experts=model.moe.num_experts,
            top_k=model.moe.top_k,
            hidden=model.hidden_size,
            tokens=tokens,
            microbatches=microbatches,
            sharded=layout.zero > 0,
            recompute=recompute,
        )
        return step, RankLayout(layout.dp, layout.ep, self._local(layout))

    def _local(self, layout: LayoutConfig) -> int:
        """Ranks of a node; of a smaller run, all."""
        return math.gcd(self.per_node, layout.dp)


def measured(report: BenchReport, per_node: int, engine: EngineConfig) -> Predicted:
    """From a collectives report's fits."""
    hosts = ", ".join(sorted({host.device for host in report.hosts}))
    label = f"measured with {report.backend} on {report.world_size} ranks ({hosts})"
    return Predicted(Network(fit_report(report)), per_node, engine, label)


def alone(engine: EngineConfig) -> Predicted:
    """For one device, which has no one to talk to."""
    return Predicted(Network(()), 1, engine, "none: one device")


def of_data_sheet(target: Target, per_node: int, engine: EngineConfig) -> Predicted:
    """A model of `target`'s links, labelled so."""
    label = f"model from the data sheets of {target.product} and 400G NICs, nothing measured"
    return Predicted(SheetNetwork(target), per_node, engine, label)
