"""Megatron-Core checkpoints (`torch_dist`) of a GPTModel of our shape.

They are torch DCP folders with Megatron's own names: `decoder.layers.mlp...` with all layers in
one tensor's first axis, or `decoder.layers.3.mlp...` where the layers differ. Queries, keys and
values share one tensor, in turns by KV head; gate and up are halves of `linear_fc1`, as in ours.
"""

import json
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .... import UserError
from ...config import ModelConfig
from ..plainfile import read_plain
from .assembled import KINDS, Assembly, ForeignSource, Steps
from .dcp import DCPFolder
from .pickles import shown
from .torchfile import FIX, TorchFile, understood
from .values import Values
from .wanted import Wanted, find_model, with_vocabulary

CONFIG = "metadata.json"
MAX_CONFIG = 1 << 20
"""Bytes; it has three entries."""
COMMON = "common.pt"
QKV = "self_attention.linear_qkv.weight"
TABLE = "embedding.word_embeddings.weight"
TABLES = {TABLE: "embedding", "output_layer.weight": "head"}
"""Tables whose rows Megatron may pad."""
WHOLE = {"decoder.final_layernorm.weight": "norm.weight"}
LAYER = {
    "input_layernorm.weight": "mixer_norm.weight",
    "self_attention.linear_qkv.layer_norm_weight": "mixer_norm.weight",
    "self_attention.linear_proj.weight": "mixer.o",
    "self_attention.q_layernorm.weight": "mixer.q_norm",
    "self_attention.k_layernorm.weight": "mixer.k_norm",
    "pre_mlp_layernorm.weight": "ffn_norm.weight",
    "mlp.linear_fc1.layer_norm_weight": "ffn_norm.weight",
    "mlp.linear_fc1.weight": "ffn.mlp.gate_up",
    "mlp.linear_fc2.weight": "ffn.mlp.down",
    "mlp.router.weight": "ffn.router.weight",
    "mlp.router.expert_bias": "ffn.router.bias",
    "mlp.experts.experts.linear_fc1.weight": "ffn.experts.gate_up",
    "mlp.experts.experts.linear_fc2.weight": "ffn.experts.down",
    "mlp.shared_experts.linear_fc1.weight": "ffn.shared.gate_up",
    "mlp.shared_experts.linear_fc2.weight": "ffn.shared.down",
}
"""Our name inside a layer, for each of Megatron's. Norms lie in the linear layer behind them where
Transformer Engine fuses both."""
_STATE = re.compile(r"optimizer\.state\.(exp_avg|exp_avg_sq|fp32_param|param)\.(.+)")
_LAYER = re.compile(r"decoder\.layers\.(?:(\d+)\.)?(.+)")


@dataclass(frozen=True)
class Tensor:
    """One tensor of the checkpoint: the kind of state, and Megatron's name of the parameter."""

    prefix: str
    name: str
    values: Values


def is_megatron(path: Path) -> bool:
    """Whether Megatron-Core wrote the folder."""
    return (path / CONFIG).exists() and (path / COMMON).exists()


def open_megatron(path: Path, model: ModelConfig | None) -> ForeignSource:
    """The checkpoint in a folder such as `iter_0000100`. Raises UserError."""
    _check_backend(path / CONFIG)
    common = TorchFile(path / COMMON).data
    with understood(path, "Megatron-Core"):
        tensors = _choose(DCPFolder(path))
        config = find_model(path, {}, model)
        assembly = Assembly(path, Wanted(with_vocabulary(config, _rows(path, tensors))))
        for tensor in tensors:
            _place(assembly, tensor)
        return assembly.source(_step(path, common), {})


def _rows(path: Path, tensors: list[Tensor]) -> int:
    """Rows of the embedding."""
    for tensor in tensors:
        if tensor.name == TABLE:
            return tensor.values.shape[0]
    raise UserError(
        f"{path}: no {TABLE}: the checkpoint is not whole, or a pipeline stage's; {FIX}"
    )


def _check_backend(file: Path) -> None:
    try:
        backend = json.loads(read_plain(file, MAX_CONFIG)).get("sharded_backend")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({shown(error)}): {FIX}") from None
    if backend != "torch_dist":
        raise UserError(
            f"{file}: sharded_backend is {reprlib.repr(backend)}: save in the torch_dist format"
        )


def _choose(folder: DCPFolder) -> list[Tensor]:
    """The tensors that a model and its optimizer are made of; fp32 masters, where there are any,
    in place of the weights."""
    found: dict[tuple[str, str], Values] = {}
    for key, values in folder.tensors.items():
        state = _STATE.fullmatch(key)
        if key.startswith("optimizer.") and state is None:
            raise UserError(
                f"{folder.folder}: {key} is in a layout of one data-parallel size: save with "
                "distrib_optim_sharding_type fully_reshardable"
            )
        if state is None:
            found.setdefault(("model", key), values)
        elif state[1] in ("fp32_param", "param"):
            found["model", state[2]] = values
        else:
            found[KINDS[state[1]], state[2]] = values
    return [Tensor(prefix, name, values) for (prefix, name), values in found.items()]


def _place(assembly: Assembly, tensor: Tensor) -> None:
    """Put one tensor under our names."""
    layer = _LAYER.fullmatch(tensor.name)
    if tensor.name in TABLES:
        _place_table(assembly, tensor)
    elif tensor.name in WHOLE:
        assembly.add(tensor.prefix, WHOLE[tensor.name], tensor.values)
    elif layer is None:
        raise _unknown(assembly, tensor)
    else:
        shape = tensor.values.shape
        layers = [int(layer[1])] if layer[1] else _all_layers(assembly, tensor)
        inner = shape if layer[1] else shape[1:]
        for position, index in enumerate(layers):
            _place_layer(assembly, tensor, index, layer[2], inner, position)


def _all_layers(assembly: Assembly, tensor: Tensor) -> range:
    layers = assembly.wanted.config.num_layers
    if tensor.values.shape[:1] != (layers,):
        raise UserError(
            f"{assembly.folder}: {tensor.name} is {list(tensor.values.shape)}, but the model in "
            f"the config has {layers} layers: give the config of the run that wrote it"
        )
    return range(layers)


def _place_table(assembly: Assembly, tensor: Tensor) -> None:
    name, shape = TABLES[tensor.name], tensor.values.shape
    rows, width = assembly.wanted.shape("embedding")
    if name not in assembly.wanted.parameters:
        raise _unknown(assembly, tensor)
    if len(shape) != 2 or shape[0] < rows or shape[1] != width:
        raise UserError(
            f"{assembly.folder}: {tensor.name} is {list(shape)}, but the model in the config has "
            f"[{rows}, {width}]: give the config of the run that wrote it"
        )
    assembly.add_run(tensor.prefix, name, 0, rows * width, tensor.values, 0)


def _place_layer(
    assembly: Assembly,
    tensor: Tensor,
    layer: int,
    leaf: str,
    shape: tuple[int, ...],
    position: int,
) -> None:
    """One layer's part of a tensor: the `position`-th box of `shape` in it."""
    start = position
    for size in shape:
        start *= size
    if leaf == QKV:
        _place_qkv(assembly, tensor, layer, shape, start)
        return
    name = f"layers.{layer}.{LAYER.get(leaf, '')}"
    if assembly.wanted.known(name) is None:
        raise _unknown(assembly, tensor)
    if shape != assembly.wanted.shape(name):
        raise _misshapen(assembly, tensor, shape, assembly.wanted.shape(name))
    numel = assembly.wanted.numel(name)
    assembly.add_run(tensor.prefix, name, 0, numel, tensor.values, start)


def _place_qkv(
    assembly: Assembly, tensor: Tensor, layer: int, shape: tuple[int, ...], start: int
) -> None:
    """For each KV head its query heads, its key and its value, row by row."""
    config = assembly.wanted.config
    head = config.head_dim * config.hidden_size
    queries = config.num_heads // config.num_kv_heads
    rows = config.num_kv_heads * (queries + 2) * config.head_dim
    if shape != (rows, config.hidden_size):
        raise _misshapen(assembly, tensor, shape, (rows, config.hidden_size))
    if layer >= config.num_layers:
        raise _unknown(assembly, tensor)
    for group in range(config.num_kv_heads):
        for leaf, heads in (("q", queries), ("k", 1), ("v", 1)):
            name, size = f"layers.{layer}.mixer.{leaf}", heads * head
            assembly.add_run(tensor.prefix, name, group * size, size, tensor.values, start)
            start += size


def _unknown(assembly: Assembly, tensor: Tensor) -> UserError:
    return UserError(
        f"{assembly.folder}: it holds {tensor.name} {list(tensor.values.shape)}, for which the "
        "model in the config has no place: give the config of the run that wrote it"
    )


def _misshapen(
    assembly: Assembly, tensor: Tensor, got: tuple[int, ...], wanted: tuple[int, ...]
) -> UserError:
    return UserError(
        f"{assembly.folder}: {tensor.name} has {list(got)} a layer, but the model in the config "
        f"{list(wanted)}: give the config of the run that wrote it"
    )


def _step(path: Path, common: Any) -> int:
    """The run's iteration, else the optimizer's step."""
    if "iteration" in common:
        return Steps(path).last(common["iteration"], {})
    groups = common.get("optimizer", {}).get("param_groups", [])
    return max((Steps(path).last(g["step"], {}) for g in groups if "step" in g), default=0)
