"""The configuration sections that the model, the engines and the checkpoints own.

`launch.config` nests them into one run. Every section refuses unknown fields.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """One concern of a run: unknown fields are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MoEConfig(Section):
    """The mixture of experts of one feed-forward layer."""

    num_experts: Positive = 8
    top_k: Positive = 2
    expert_size: Positive = 512
    """Intermediate width of each routed expert."""
    shared_expert_size: NonNegative = 0
    """Intermediate width of the always-active shared expert (0: none)."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """Softmax scores (Switch, OLMoE) or sigmoid scores (DeepSeek-V3)."""
    normalize_top_k: bool = True
    """Scale the chosen weights to sum to one for each token."""
    load_balance_weight: Annotated[float, Field(ge=0)] = 0.01
    balance_scope: Literal["sequence", "batch"] = "sequence"
    """Balance each sequence (DeepSeek-V3; the same for every layout), or the micro-batch of all
    data-parallel ranks."""
    z_weight: Annotated[float, Field(ge=0)] = 1e-3
    bias_update_rate: Annotated[float, Field(ge=0)] = 0.0
    """Step of the loss-free balancing bias (arXiv 2408.15664; 0: off)."""

    @model_validator(mode="after")
    def _check(self) -> "MoEConfig":
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k is {self.top_k}, above num_experts {self.num_experts}: lower top_k"
            )
        return self


class ModelConfig(Section):
    """A decoder-only language model."""

    vocab_size: NonNegative = 0
    """0 takes the tokenizer's size, padded to a multiple of 64."""
    hidden_size: Positive = 256
    num_layers: Positive = 4
    num_heads: Positive = 4
    num_kv_heads: Positive = 2
    head_dim: Positive = 64
    ffn_size: Positive = 1024
    """Intermediate width of the dense feed-forward layers."""
    pattern: Annotated[tuple[str, ...], Field(min_length=1)] = ("attention/moe",)
    """`mixer/ffn` of each layer, repeated over the depth."""
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    rope_fraction: Fraction = 1.0
    qk_norm: bool = False
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    tie_embeddings: bool = False
    init_std: Annotated[float, Field(gt=0)] = 0.02
    moe: MoEConfig = MoEConfig()

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads "
                f"{self.num_kv_heads}: every KV head serves the same number of query heads"
            )
        if int(self.head_dim * self.rope_fraction) % 2:
            raise ValueError(
                f"rope_fraction {self.rope_fraction} of head_dim {self.head_dim} is an odd width: "
                "RoPE rotates pairs"
            )
        for name, width in (
            ("hidden_size", self.hidden_size),
            ("expert_size", self.moe.expert_size),
        ):
            if width % 8:
                raise ValueError(
                    f"{name} is {width}: grouped GEMM needs a multiple of 8 (16-byte rows in bf16)"
                )
        return self


class LayoutConfig(Section):
    """How the ranks share the work. World size is dp * tp * pp * cp; ep divides dp."""

    dp: Positive = 1
    ep: Positive = 1
    tp: Positive = 1
    pp: Positive = 1
    cp: Positive = 1
    zero: Annotated[int, Field(ge=0, le=3)] = 1

    @model_validator(mode="after")
    def _check(self) -> "LayoutConfig":
        if self.dp % self.ep:
            raise ValueError(
                f"ep is {self.ep}, which does not divide dp {self.dp}: expert parallelism splits "
                "the data-parallel ranks, so set dp to a multiple of ep"
            )
        for name in ("tp", "pp", "cp"):
            if getattr(self, name) != 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}: no engine runs it yet, set {name}: 1"
                )
        return self

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.dp * self.tp * self.pp * self.cp


class EngineConfig(Section):
    """What runs a training step."""

    name: Literal["native", "deepspeed"] = "native"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations; master weights and optimizer state are always fp32."""
    compile: bool = False
    """torch.compile each block (GPU)."""
    recompute: bool = False
    """Recompute each block's activations in the backward pass."""
    deterministic: bool = False
    """Only kernels that repeat bitwise on GPUs too, so that a resume does; the CPU's always do."""
    bucket_mb: Positive = 64
    """Gradient bytes fused into one collective, in MiB."""


class OptimizerConfig(Section):
    """AdamW, or Muon for hidden matrices with AdamW for the rest."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 3e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip_grad: Annotated[float, Field(ge=0)] = 1.0
    """Global gradient norm limit (0: none)."""
    momentum: Fraction = 0.95
    """Muon's momentum."""
    ns_steps: Positive = 5
    """Muon's Newton-Schulz steps."""


class ScheduleConfig(Section):
    """Learning rate over the run, as a share of `optimizer.lr`."""

    name: Literal["cosine", "wsd"] = "cosine"
    warmup_steps: NonNegative = 0
    decay_fraction: Fraction = 0.2
    """Share of the run that WSD spends on its final decay."""
    min_ratio: Fraction = 0.1


class CheckpointConfig(Section):
    """Where and how often the run saves its state."""

    path: str = "checkpoints"
    """Folder; a relative one lies in the run's output folder."""
    interval: NonNegative = 100
    """Steps between saves (0: only at the end)."""
    keep: Positive = 3
    asynchronous: bool = True
    """Write to disk behind the training steps."""
    retries: NonNegative = 3
    """How often a save is tried again where the disk was full, failed or was read-only."""
    retry_wait_s: Annotated[float, Field(ge=0)] = 5.0
    """Pause before each new try; training goes on meanwhile."""
