"""Models drawn at random, for the tests of what reads a model's configuration."""

from hypothesis import strategies as st

from moelstrom.moe.config import ModelConfig, MoEConfig

PATTERNS = ("attention/moe",), ("attention/dense",), ("attention/dense", "attention/moe")


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    kv = draw(st.integers(1, 4))
    return ModelConfig(
        vocab_size=draw(st.integers(300, 5000)),
        hidden_size=8 * draw(st.integers(1, 64)),
        num_layers=draw(st.integers(1, 9)),
        num_heads=kv * draw(st.integers(1, 4)),
        num_kv_heads=kv,
        head_dim=2 * draw(st.integers(1, 64)),
        ffn_size=draw(st.integers(1, 999)),
        pattern=draw(st.sampled_from(PATTERNS)),
        qk_norm=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
        moe=MoEConfig(
            num_experts=draw(st.integers(4, 16)),
            top_k=draw(st.integers(1, 4)),
            expert_size=8 * draw(st.integers(1, 99)),
            shared_expert_size=draw(st.sampled_from((0, 24))),
        ),
    )
