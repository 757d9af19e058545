"""Which Hugging Face class computes what a model of ours does, and their configs in both ways.

The classes are transformers' Mixtral, OLMoE and Qwen3-MoE. All have softmax scores before the
choice of experts, SwiGLU, RoPE over whole heads in two halves, and no biases, as ours may; they
differ in the norm of queries and keys, in the scale of the chosen weights and in dense layers.
"""

import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from .... import UserError
from ...config import ModelConfig, layer_kinds
from ..foreign.pickles import shown
from ..foreign.wanted import MAX_LAYERS, check_countable
from ..manifest import explain

DEFAULT_THETA = {"mixtral": 1e6}
"""RoPE's base where a config.json has none; 10,000 for the others."""


@dataclass(frozen=True)
class Architecture:
    """One class of transformers and the names of its feed-forward weights."""

    model_type: str
    class_name: str
    qk_norm: Literal[True, False, "whole"]
    block: str
    """The mixture of experts inside a layer."""
    gate: str
    up: str
    down: str


MIXTRAL = Architecture("mixtral", "MixtralForCausalLM", False, "block_sparse_moe", "w1", "w3", "w2")
OLMOE = Architecture(
    "olmoe", "OlmoeForCausalLM", "whole", "mlp", "gate_proj", "up_proj", "down_proj"
)
QWEN3_MOE = Architecture(
    "qwen3_moe", "Qwen3MoeForCausalLM", True, "mlp", "gate_proj", "up_proj", "down_proj"
)
ARCHITECTURES = (MIXTRAL, OLMOE, QWEN3_MOE)


def choose(model: ModelConfig) -> Architecture:
    """The class that computes what `model` does; UserError names the field that none has."""
    (found,) = (a for a in ARCHITECTURES if a.qk_norm == model.qk_norm)
    for field, why in _obstacles(model, found):
        raise UserError(f"model.{field}: {why}; a model with another value can be exported")
    return found


def _obstacles(model: ModelConfig, found: Architecture) -> Iterator[tuple[str, str]]:
    """(field, why) of everything that the class cannot compute."""
    moe, name = model.moe, found.class_name
    kinds = layer_kinds(model)
    norm = f"with model.qk_norm {model.qk_norm}"
    if model.layers:
        yield "layers", f"{name} has layers of one shape, as model.pattern gives"
    if any(k.mixer.kind != "attention" for k in kinds):
        yield "pattern", f"{name} has attention only"
    if any(k.ffn.kind == "dense" for k in kinds) and found is not QWEN3_MOE:
        yield "pattern", f"{name}, the class {norm}, has no dense layers"
    if moe.score != "softmax":
        yield "moe.score", f"{name} has softmax scores, not {moe.score}"
    if moe.shared_expert_size:
        yield "moe.shared_expert_size", f"{name} has no shared expert"
    if not moe.normalize_top_k and found is MIXTRAL:
        yield "moe.normalize_top_k", f"{name}, the class {norm}, always normalises"
    if model.rope_fraction != 1:
        yield "rope_fraction", f"{name} rotates whole heads, not {model.rope_fraction} of them"
    if found is OLMOE and model.head_dim * model.num_heads != model.hidden_size:
        yield "head_dim", f"{name} has hidden_size / num_heads, not {model.head_dim}"


def to_config(model: ModelConfig, found: Architecture, dtype: str) -> dict[str, Any]:
    """What config.json says of `model`, with weights of type `dtype`."""
    theta = model.rope_theta
    return {
        "architectures": [found.class_name],
        "model_type": found.model_type,
        "dtype": dtype,
        "torch_dtype": dtype,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "initializer_range": model.init_std,
        "rms_norm_eps": model.norm_eps,
        # Versions 4 and 5 of transformers read RoPE's base at different places.
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": model.tie_embeddings,
        "num_experts_per_tok": model.moe.top_k,
        "router_aux_loss_coef": model.moe.load_balance_weight,
        **_own_fields(model, found),
    }


def _own_fields(model: ModelConfig, found: Architecture) -> dict[str, Any]:
    moe = model.moe
    if found is MIXTRAL:
        return {
            "intermediate_size": moe.expert_size,
            "num_local_experts": moe.num_experts,
            "sliding_window": None,
        }
    fields = {
        "num_experts": moe.num_experts,
        "norm_topk_prob": moe.normalize_top_k,
        "attention_bias": False,
    }
    if found is OLMOE:
        return {**fields, "intermediate_size": moe.expert_size, "clip_qkv": None}
    dense = [i for i, k in enumerate(layer_kinds(model)) if k.ffn.kind == "dense"]
    return {
        **fields,
        "intermediate_size": model.ffn_size,
        "moe_intermediate_size": moe.expert_size,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
        "use_sliding_window": False,
    }


def from_config(config: dict[str, Any], source: str) -> tuple[Architecture, ModelConfig]:
    """The class and the model of a config.json; `source` names the file in errors.

    Raises UserError for a class, or a field's value, that no model of ours computes.
    """
    kind = config.get("model_type")
    found = next((a for a in ARCHITECTURES if a.model_type == kind), None)
    if found is None:
        known = ", ".join(a.model_type for a in ARCHITECTURES)
        raise UserError(f"{source}: model_type is {reprlib.repr(kind)}; give a model of {known}")
    _check_supported(config, source)
    try:
        model = ModelConfig.model_validate(_model_fields(config, found))
        check_countable(model, source)
        return found, model
    except KeyError as error:
        raise UserError(f"{source}: no field {error}; give the model's own config.json") from None
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error)}: no model of ours has it") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{source}: {shown(error)}; give the model's own config.json") from None


def _check_supported(config: dict[str, Any], source: str) -> None:
    rope = _rope(config)
    sliding = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    for field, value, only in (
        ("hidden_act", config.get("hidden_act", "silu"), "silu"),
        ("attention_bias", config.get("attention_bias", False), False),
        ("clip_qkv", config.get("clip_qkv"), None),
        ("sliding_window", sliding, None),
        ("quantization_config", config.get("quantization_config"), None),
        ("rope_type", rope.get("rope_type", rope.get("type", "default")), "default"),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), 1.0),
    ):
        if value != only:
            raise UserError(
                f"{source}: {field} is {reprlib.repr(value)}; only a model with {only!r} can be "
                "imported"
            )


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """RoPE's settings, under the name of transformers 5 or 4."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return found if isinstance(found, dict) else {"rope_type": found}


def _model_fields(config: dict[str, Any], found: Architecture) -> dict[str, Any]:
    heads = config["num_attention_heads"]
    theta = config.get("rope_theta") or DEFAULT_THETA.get(found.model_type, 1e4)
    fields = {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "pattern": _pattern(config, found),
        "rope_theta": _rope(config).get("rope_theta", theta),
        "qk_norm": found.qk_norm,
        "norm_eps": config["rms_norm_eps"],
        "tie_embeddings": config.get("tie_word_embeddings", False),
        "init_std": config.get("initializer_range", 0.02),
        "moe": _moe_fields(config, found),
    }
    if found is QWEN3_MOE:
        fields["ffn_size"] = config["intermediate_size"]
    return fields


def _moe_fields(config: dict[str, Any], found: Architecture) -> dict[str, Any]:
    width = "moe_intermediate_size" if found is QWEN3_MOE else "intermediate_size"
    experts = config.get("num_local_experts") or config["num_experts"]
    return {
        "num_experts": experts,
        "top_k": config["num_experts_per_tok"],
        "expert_size": config[width],
        "normalize_top_k": found is MIXTRAL or config.get("norm_topk_prob", False),
        "load_balance_weight": config.get("router_aux_loss_coef", 0.001),
    }


def _pattern(config: dict[str, Any], found: Architecture) -> list[str]:
    """The shortest `model.pattern` that gives every layer its feed-forward kind."""
    layers, dense = config["num_hidden_layers"], set()
    if layers > MAX_LAYERS:
        raise ValueError(f"num_hidden_layers is {layers}, above {MAX_LAYERS}")
    if found is QWEN3_MOE:
        step = config.get("decoder_sparse_step", 1)
        dense = {i for i in range(layers) if (i + 1) % step}
        dense |= set(config.get("mlp_only_layers") or ())
    kinds = ["attention/dense" if i in dense else "attention/moe" for i in range(layers)]
    periods = (p for p in range(1, layers) if kinds[p:] == kinds[:-p])
    return kinds[: next(periods, layers)]
