"""Megatron-Core checkpoints, written by Megatron-Core from its own GPTModel."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moelstrom import UserError
from moelstrom.moe.checkpoint.foreign import open_source
from moelstrom.moe.config import LayoutConfig, ModelConfig, MoEConfig
from moelstrom.moe.grid import Grid
from moelstrom.moe.model import Model
from moelstrom.moe.state.names import fill, fill_buffers
from moelstrom.moe.state.source import Source

MODEL = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    ffn_size=24,
    qk_norm=True,
    pattern=("attention/moe",),
    moe=MoEConfig(num_experts=4, top_k=2, expert_size=8, shared_expert_size=16, score="sigmoid"),
)
MIXED = MODEL.model_copy(
    update={"pattern": ("attention/dense", "attention/moe"), "tie_embeddings": True}
)
CASES = {"alike": MODEL, "mixed": MIXED}
TOP = {
    "embedding.word_embeddings.weight": "embedding",
    "decoder.final_layernorm.weight": "norm.weight",
    "output_layer.weight": "head",
}
TOKENS = torch.arange(32).view(2, 16) * 7 % 40
State = dict[str, torch.Tensor]


def gpt(model: ModelConfig) -> Any:
    """Megatron's model of the same shape."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.transformer import TransformerConfig

    layers = [int(model.pattern[i % len(model.pattern)].endswith("moe")) for i in range(3)]
    config = TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_heads,
        num_query_groups=model.num_kv_heads,
        kv_channels=model.head_dim,
        ffn_hidden_size=model.ffn_size,
        num_moe_experts=model.moe.num_experts,
        moe_ffn_hidden_size=model.moe.expert_size,
        moe_shared_expert_intermediate_size=model.moe.shared_expert_size,
        moe_router_topk=model.moe.top_k,
        moe_layer_freq=1 if all(layers) else layers,
        moe_router_enable_expert_bias=True,
        moe_router_score_function=model.moe.score,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_eps,
        add_bias_linear=False,
        bias_activation_fusion=False,
        qk_layernorm=True,
        use_cpu_initialization=True,
    )
    return GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_decoder_block_spec(config, use_transformer_engine=False),
        vocab_size=48,
        max_sequence_length=16,
        share_embeddings_and_output_weights=model.tie_embeddings,
        position_embedding_type="rope",
        parallel_output=False,
    )


def canonical(model: ModelConfig, held: State) -> State:
    """Our names of what Megatron's modules call `held`, one tensor of a module at a time."""
    heads = model.num_heads // model.num_kv_heads
    plain = {
        "input_layernorm.weight": "mixer_norm.weight",
        "self_attention.linear_proj.weight": "mixer.o",
        "self_attention.q_layernorm.weight": "mixer.q_norm",
        "self_attention.k_layernorm.weight": "mixer.k_norm",
        "pre_mlp_layernorm.weight": "ffn_norm.weight",
        "mlp.router.weight": "ffn.router.weight",
        "mlp.router.expert_bias": "ffn.router.bias",
        "mlp.linear_fc1.weight": "ffn.mlp.gate_up",
        "mlp.linear_fc2.weight": "ffn.mlp.down",
        "mlp.shared_experts.linear_fc1.weight": "ffn.shared.gate_up",
        "mlp.shared_experts.linear_fc2.weight": "ffn.shared.down",
    }
    found: State = {}
    for name, value in held.items():
        if not name.startswith("decoder.layers."):
            found[TOP[name]] = value[:40]
            continue
        layer, leaf = name.removeprefix("decoder.layers.").split(".", 1)
        parts = leaf.split(".")
        if leaf == "self_attention.linear_qkv.weight":
            groups = value.view(model.num_kv_heads, heads + 2, model.head_dim, -1)
            ours = {"q": groups[:, :heads], "k": groups[:, heads], "v": groups[:, heads + 1]}
            found |= {f"layers.{layer}.mixer.{k}": v.flatten(0, -2) for k, v in ours.items()}
        elif "local_experts" in parts:
            kind = "gate_up" if parts[-2] == "linear_fc1" else "down"
            found[f"layers.{layer}.ffn.experts.{parts[-3]}.{kind}"] = value
        else:
            found[f"layers.{layer}.{plain[leaf]}"] = value
    return found


def logits(model: Any) -> torch.Tensor:
    """What Megatron's model says of TOKENS: [2, 16, 40]."""
    from megatron.core import tensor_parallel
    from megatron.core.transformer.moe import moe_utils

    # Without a GPU it has no random state to fork; without Transformer Engine no such function.
    tensor_parallel.get_cuda_rng_tracker().fork = contextlib.nullcontext
    moe_utils.te_general_gemm = None
    later = torch.ones(16, 16, dtype=torch.bool).triu(1)[None, None]
    with torch.no_grad():
        return model.eval()(TOKENS, torch.arange(16).expand(2, 16), later)[..., :40]


def our_logits(source: Source) -> torch.Tensor:
    """The same of our model with the checkpoint's weights."""
    # This file is a program too, which has no neighbours to import.
    from hf_models import alone

    with alone(), torch.no_grad():
        model = Model(MODEL, Grid(LayoutConfig()))
        for local, parameter in model.parameters_here():
            fill(source, "model", local.logicals(), 0, parameter.view(-1))
        fill_buffers(source, model)
        states, *_ = model.states(TOKENS, torch.zeros_like(TOKENS))
        return torch.nn.functional.linear(states, model.projection)


def write(path: Path) -> None:
    """Each case after one step, in Megatron's format and, pickled, under our names."""
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing import optimizer as optimizers

    # It asks for the GPU's number and waits for it, on CPU too.
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = lambda *_: None
    store = torch.distributed.FileStore(str(path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    for case, config in CASES.items():
        torch.manual_seed(5)
        model = gpt(config)
        optimizer = torch.optim.AdamW(model.parameters())
        for tensor in model.parameters():
            tensor.grad = torch.randn_like(tensor)
        optimizer.step()
        with torch.no_grad():
            for tensor in model.parameters():
                # Larger than at the start, for logits that depend on every weight.
                tensor.normal_(tensor.ndim == 1, 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("expert_bias"):
                buffer.normal_(0, 0.1)
        named = dict(model.named_parameters())
        bias = {k: v for k, v in model.named_buffers() if k.endswith("expert_bias")}
        expected = {f"model/{k}": v for k, v in canonical(config, {**named, **bias}).items()}
        for kind in ("exp_avg", "exp_avg_sq"):
            moments = {name: optimizer.state[p][kind] for name, p in named.items()}
            expected |= {f"adamw/{kind}/{k}": v for k, v in canonical(config, moments).items()}
        torch.save({k: v.detach().contiguous() for k, v in expected.items()}, path / f"{case}.pt")
        torch.save(logits(model), path / f"{case}-logits.pt")
        sharded, state = model.sharded_state_dict(), optimizer.state_dict()
        ids = optimizers.get_param_id_to_sharded_param_map(sharded, model.parameters())
        optimizers.optim_state_to_sharding_state(state, ids, exclude_keys=("step",))
        folder = path / case / "iter_0000009"
        folder.mkdir(parents=True)
        whole = {"model": sharded, "optimizer": state, "iteration": 9}
        dist_checkpointing.save(whole, str(folder))
        (path / case / "latest_checkpointed_iteration.txt").write_text("9")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that another process wrote: Megatron's writers are processes themselves."""
    path = tmp_path_factory.mktemp("megatron")
    command = [sys.executable, "-W", "ignore", __file__, str(path)]
    log = path / "log"
    with log.open("w") as file:
        ended = subprocess.run(command, stdout=file, stderr=file, timeout=200, check=False)
    assert ended.returncode == 0, log.read_text()[-3000:]
    return path


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved / "alike" / "iter_0000009", tmp_path / "iter_0000009"))


@pytest.mark.parametrize("case", CASES)
def test_reads_what_megatron_saved(saved: Path, case: str) -> None:
    expected = torch.load(saved / f"{case}.pt")
    source = open_source(saved / case, CASES[case])
    assert source.step == 9
    assert source.tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert source.tensors[name].shape == value.shape, name
        assert torch.equal(source.read(name), value.flatten()), name


def test_model_says_the_same(saved: Path) -> None:
    """Heads, halves and experts are where our model looks for them."""
    expected = torch.load(saved / "alike-logits.pt")
    assert expected.std() > 0.5
    got = our_logits(open_source(saved / "alike", MODEL))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_any_range_of_interleaved_queries(saved: Path) -> None:
    source = open_source(saved / "alike", MODEL)
    whole = source.read("model/layers.2.mixer.q")
    for start in range(0, whole.numel(), 41):
        part = source.read("model/layers.2.mixer.q", start, min(97, whole.numel() - start))
        assert torch.equal(part, whole[start : start + 97])


def test_another_model_is_refused(saved: Path) -> None:
    moe = MODEL.moe.model_copy(update={"num_experts": 8})
    others: list[dict[str, Any]] = [
        {"num_kv_heads": 3},
        {"num_layers": 2},
        {"num_layers": 4},
        {"vocab_size": 64},
        {"tie_embeddings": True},
        {"qk_norm": False},
        {"moe": moe},
    ]
    for change in others:
        with pytest.raises(UserError, match=r"config of the run|give the config of its run"):
            open_source(saved / "alike", MODEL.model_copy(update=change))


def test_damage_is_refused(copied: Path) -> None:
    (copied / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr"}))
    with pytest.raises(UserError, match=r"sharded_backend is 'zarr': save in"):
        open_source(copied, MODEL)
    (copied / "metadata.json").write_text("{")
    with pytest.raises(UserError, match=r"metadata\.json: cannot be read"):
        open_source(copied, MODEL)
    (copied / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    torch.save({"iteration": os.system}, copied / "common.pt")
    with pytest.raises(UserError, match=r"common\.pt: refused: it asks for posix\.system"):
        open_source(copied, MODEL)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
