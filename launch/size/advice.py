"""All that the sizing adviser says of a question."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...moe.sizing.adviser import Proposal, Question


@dataclass(frozen=True)
class Advice:
    """All that is shown: the question, the proposals, and where the figures come from."""

    question: "Question"
    proposals: "list[Proposal]"
    device: str
    network: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        question = self.question
        return {
            "device": self.device,
            "network": self.network,
            "budget": {**asdict(question.budget), "rule": question.budget_rule},
            "training": asdict(question.training),
            "gpus": question.ranks,
            "gpus_per_node": question.per_node,
            "bucket_mb": question.engine.bucket_mb,
            "proposals": [_plain(p) for p in self.proposals],
        }


def _plain(p: "Proposal") -> dict[str, Any]:
    return {
        **asdict(p),
        "model": p.model.model_dump(mode="json"),
        "layout": p.layout.model_dump(mode="json"),
        "memory": {**asdict(p.memory), "total": p.memory.total},
    }
