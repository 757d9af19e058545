"""The canonical state: logical tensors, held in pieces by ranks."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shard:
    """Elements [offset, offset + data.numel()) of the flattened logical tensor `name`.

    `shape` is the logical tensor's whole shape; `data` is contiguous and 1-D. A logical tensor's
    name and shape do not depend on the layout: experts carry their global id. `steady`: only the
    optimizer's update writes `data`, so that a save may copy it during the next step's passes.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    data: torch.Tensor
    steady: bool = False
