"""A grid of this one process."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from moelstrom.moe.config import LayoutConfig
from moelstrom.moe.grid import Grid


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Grid(LayoutConfig())
    dist.destroy_process_group()
