"""The documented defaults. A run that names no value trains with them, and so does a resume of an
older one: to change a default is to change what old configs mean, and it is done here too."""

import importlib
import inspect
from typing import Any

import pytest
import yaml

from moelstrom.collectives_bench.config import CollectivesConfig
from moelstrom.collectives_bench.hardware.config import HardwareConfig
from moelstrom.launch.config import RunConfig

DEFAULTS: dict[str, dict[str, Any]] = yaml.safe_load(
    """
run:
  seed: 0
  output: ''
  log_interval: 10
  evaluation: {interval: 0, batches: 4}
  model:
    vocab_size: 0
    hidden_size: 256
    num_layers: 4
    num_heads: 4
    num_kv_heads: 2
    head_dim: 64
    ffn_size: 1024
    pattern: [attention/moe]
    layers: []
    rope_theta: 10000.0
    rope_fraction: 1.0
    qk_norm: false
    norm_eps: 1.0e-06
    tie_embeddings: false
    init_std: 0.02
    moe: {score: softmax, normalize_top_k: true, load_balance_weight: 0.01, balance_scope: sequence,
      z_weight: 0.001, bias_update_rate: 0.0, kind: moe, num_experts: 8, top_k: 2, expert_size: 512,
      shared_expert_size: 0, router: null}
  data:
    path: data/python
    weights: {}
    seq_len: 512
    micro_batch_size: 8
    global_batch_size: 32
    tokenizer: byte
    corpus: null
  layout: {dp: 1, ep: 1, tp: 1, pp: 1, cp: 1, zero: 1}
  engine: {name: native, precision: fp32, compile: false, recompute: false, deterministic: false,
    bucket_mb: 64}
  optimizer:
    name: adamw
    lr: 0.0003
    betas: [0.9, 0.95]
    eps: 1.0e-08
    weight_decay: 0.1
    clip_grad: 1.0
    momentum: 0.95
    ns_steps: 5
  schedule: {name: cosine, warmup_steps: 0, decay_fraction: 0.2, min_ratio: 0.1}
  checkpoint: {path: checkpoints, interval: 100, keep: 3, load: '', asynchronous: true, retries: 3,
    retry_wait_s: 5.0, replicas: false}
  health: {nan: rollback, spike: 'off', spike_factor: 4.0, spike_window: 64, max_skips: 10,
    max_rollbacks: 3}
  cluster:
    launcher: ray
    address: null
    gpus_per_worker: null
    cpus_per_worker: 1
    strategy: PACK
    max_restarts: 3
    restart_window_s: 3600.0
    heartbeat_timeout_s: 5.0
    progress_timeout_s: 900.0
    hang_factor: 10.0
    hang_floor_s: 5.0
    straggler_factor: 1.5
    elastic: false
    min_workers: 1
    rejoin_wait_s: 10.0
    spare_workers: 0
    preempt_grace_s: 60.0
    env: {}
collectives:
  ops: [all_reduce, reduce_scatter, all_gather, broadcast, reduce, gather, scatter, all_to_all,
    all_to_all_v, send_recv, barrier]
  dtypes: [fp32]
  in_place: both
  min_bytes: 1024
  max_bytes: null
  factor: 2
  groups: [world]
  at_once: both
  loads: [balanced]
  warmup: 1
  iterations: 20
  budget_s: 10.0
  check: true
  memory_fraction: 0.8
  timeout_s: 60.0
  inject: null
  seed: 0
hardware:
  benches: [memory, gemm, experts, attention, copy]
  budget_s: 0.3
  memory_fraction: 0.6
  min_bytes: 65536
  max_bytes: null
  least_set: null
  factor: 4
  kinds: [copy, scale, triad, read, write]
  gemm_shapes: null
  gemm_dtypes: [bf16, fp32]
  model_shapes: []
  expert_shapes: null
  seq_lens: null
  heads: 8
  kv_heads: 2
  head_dim: 128
"""
)


def check(values: Any, pinned: Any, place: str) -> None:
    """Every pinned value; a field that is new is free until it stands above."""
    if not isinstance(pinned, dict) or not pinned:
        assert values == pinned, place
        return
    for name, value in pinned.items():
        check(values[name], value, f"{place}.{name}")


@pytest.mark.parametrize("section", DEFAULTS)
def test_defaults(section: str) -> None:
    makers: dict[str, Any] = {
        "run": lambda: RunConfig(steps=1),
        "collectives": CollectivesConfig,
        "hardware": HardwareConfig,
    }
    made = makers[section]()
    check(made.model_dump(mode="json"), DEFAULTS[section], section)


OPTIONS: dict[str, dict[str, Any]] = {
    "bench collectives": {"threshold": 0.1},
    "bench hardware": {"threshold": 0.1},
    "bench compare_reports": {"threshold": 0.1},
    "bench predict_steps": {"per_node": 8},
    "chaos chaos": {"seed": 0, "spacing": 40},
    "ckpt verify": {"readers": 2},
    "ckpt reshape": {
        "engine": "native",
        **dict.fromkeys(("dp", "ep", "tp", "pp", "cp", "zero"), 1),
        "memory": "1GiB",
        "readers": 2,
        "dry_run": False,
    },
    "ckpt diff": {"readers": 2},
    "hf export_hf": {"dtype": "bf16", "max_shard": "5GB"},
    "data prepare": {"tokenizer": "byte", "valid_fraction": 0.02},
    "kernels bench": {"quick": False},
    "kernels tune": {"write": False},
    "size size": {
        "gpus": 8,
        "gpus_per_node": 8,
        "vocab": 65536,
        "seq_len": 4096,
        "batch_tokens": "4M",
        "context": 4096,
        "limit": 5,
    },
    "train train": {"dry_run": False},
}


@pytest.mark.parametrize("command", OPTIONS)
def test_defaults_of_commands(command: str) -> None:
    module, name = command.split()
    made = getattr(importlib.import_module(f"moelstrom.launch.commands.{module}"), name)
    parameters = inspect.signature(made).parameters
    assert {option: parameters[option].default for option in OPTIONS[command]} == OPTIONS[command]
