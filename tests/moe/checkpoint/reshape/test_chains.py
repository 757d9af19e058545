"""Random chains of layouts, written and read for real, come back to the same state."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from reshape_states import MODEL, plan_for, reshaped, synthetic

from moelstrom import UserError
from moelstrom.moe.checkpoint.reader import verify
from moelstrom.moe.checkpoint.reshape.compare import differences
from moelstrom.moe.config import ModelConfig

LAYOUTS = st.fixed_dictionaries(
    {
        "engine": st.sampled_from(["native", "deepspeed", "megatron"]),
        "dp": st.integers(1, 6),
        "ep": st.sampled_from([1, 2, 4]),
        "tp": st.sampled_from([1, 2, 4]),
        "pp": st.integers(1, 3),
        "cp": st.integers(1, 2),
        "zero": st.integers(0, 3),
    }
)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(LAYOUTS, min_size=2, max_size=4),
    st.sampled_from(["adamw", "muon"]),
    st.booleans(),
)
def test_any_chain_returns_the_same_state(
    chain: list[dict[str, Any]], optimizer: str, tied: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = ModelConfig(**{**MODEL.model_dump(), "tie_embeddings": tied})
        first = reshaped(synthetic(folder, model, optimizer), folder / "start", dp=2, ep=2)
        source = first
        for i, layout in enumerate(chain):
            try:
                plan_for(source, **layout)
            except UserError:
                continue
            after = reshaped(source, folder / str(i), **layout)
            if source is not first:
                shutil.rmtree(source.folder.parent)
            source = after
        assert differences(first, verify(source.folder), readers=2) == []
