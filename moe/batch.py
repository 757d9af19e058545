"""What one micro-batch holds."""

from dataclasses import dataclass

import torch

IGNORE = -100
"""Target of a position that counts for no loss."""


@dataclass(frozen=True)
class Batch:
    """Packed sequences of one micro-batch.

    `tokens` [B, S] int64: the input. `targets` [B, S] int64: the next token, IGNORE where the next
    token belongs to another document. `documents` [B, S] int32: the document's index in its
    sequence, never falling from left to right; attention stays inside a document.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return Batch(
            *(t.to(device, non_blocking=True) for t in (self.tokens, self.targets, self.documents))
        )
