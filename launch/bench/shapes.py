"""A training config's matrix products and attention, as the hardware benchmark's fields."""

import json

from ...moe.sizing.work import expert_shapes, gemm_shapes
from ...moe.vocabulary import sized
from ..config import load
from ..data.tokenizer import load_tokenizer


def settings(source: str) -> list[str]:
    """`field=value` overrides of a HardwareConfig that measure one micro-batch of the model of a
    YAML or recipe, on one of its ranks."""
    run = load(source)
    model = sized(run.model, load_tokenizer(run.data.tokenizer).vocab_size)
    tokens = run.data.micro_batch_size * run.data.seq_len
    fields = {
        "model_shapes": gemm_shapes(model, tokens),
        "expert_shapes": expert_shapes(model, tokens, run.layout.ep),
        "heads": model.num_heads,
        "kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "seq_lens": [run.data.seq_len],
    }
    return [f"{name}={json.dumps(value)}" for name, value in fields.items()]
