"""One optimizer step of the whole model against torch.optim.AdamW and a Muon of ten lines, both in
fp64 and fed by the oracle's gradients: clipping, decay, bias correction, schedule, router biases.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_models import alone
from ranks import run_ranks
from reference_model import Shape, Weights, biases, draw
from reference_model import run as reference
from whole_steps import Data, Run, data, exported, start, step

SHAPE = Shape()
TOLERANCE = 3e-5
DONE, SKIPPED = 9, 2
"""Steps before this one, and how many of them made no update."""
SCHEDULE = {"warmup_steps": 15, "min_ratio": 0.1}
RATE = 0.05 * (DONE + 1) / 15
"""Of step 9: still in the warm-up."""
ADAMW: dict[str, Any] = {
    "lr": 0.05,
    "betas": (0.8, 0.95),
    "eps": 1e-3,
    "weight_decay": 0.3,
    "clip_grad": 0.0,
}
MUON: dict[str, Any] = {**ADAMW, "name": "muon", "momentum": 0.9, "ns_steps": 5}


def is_hidden(name: str, value: torch.Tensor) -> bool:
    """Whether Muon updates it: a matrix inside a block."""
    return name.startswith("layers.") and value.ndim == 2


def moments(weights: Weights, muon: bool) -> Weights:
    """Optimizer state as large as the gradients are, so that an update is smooth in them."""
    generator = torch.Generator().manual_seed(8)
    made = {}
    for name, w in weights.items():
        keys = ("muon/momentum",) if muon and is_hidden(name, w) else KEYS
        for key in keys:
            value = torch.randn(w.shape, generator=generator).double() / 4
            made[f"{key}/{name}"] = value.square() + 0.01 if key.endswith("sq") else value
    return made


KEYS = ("adamw/exp_avg", "adamw/exp_avg_sq")


def gradients(given: Data, weights: Weights, bias: Weights) -> tuple[Weights, list[list[int]]]:
    """The oracle's gradients, and its experts' loads."""
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    sums = reference(SHAPE, leaves, bias, given.tokens, given.targets, given.documents)
    sums.loss.backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}, sums.loads


def clipped(grads: Weights, limit: float) -> Weights:
    """Scaled down to the norm `limit`, never up."""
    norm = math.sqrt(sum(float(g.square().sum()) for g in grads.values()))
    return {name: g * min(1.0, limit / norm) if limit else g for name, g in grads.items()}


def adamw(weights: Weights, grads: Weights, state: Weights, updates: int, rate: float) -> Weights:
    """torch's own step, with decay on matrices only."""
    end: Weights = {}
    for name, value in weights.items():
        p = torch.nn.Parameter(value.clone())
        p.grad = grads[name]
        decay = ADAMW["weight_decay"] if value.ndim == 2 else 0.0
        options = {"lr": rate, "betas": ADAMW["betas"], "eps": ADAMW["eps"], "foreach": False}
        optimizer = torch.optim.AdamW([p], weight_decay=decay, **options)
        before = {k.split("/")[1]: state[f"{k}/{name}"].clone() for k in KEYS}
        optimizer.state[p] = {"step": torch.tensor(float(updates)), **before}
        optimizer.step()
        end[f"model/{name}"] = p.detach()
        end |= {f"{k}/{name}": optimizer.state[p][k.split("/")[1]] for k in KEYS}
    return end


def muon(weights: Weights, grads: Weights, state: Weights, rate: float) -> Weights:
    """Momentum, orthogonalised by five steps of Jordan's quintic, at AdamW's usual size
    (arXiv 2502.16982); gate and up projections are two matrices."""
    end: Weights = {}
    for name, w in weights.items():
        m = 0.9 * state[f"muon/momentum/{name}"] + grads[name]
        parts = []
        for x in m.chunk(2) if name.endswith("gate_up") else (m,):
            size, x = max(x.shape), x / x.norm()
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
            parts.append(0.2 * math.sqrt(size) * x)
        end[f"model/{name}"] = w - rate * (torch.cat(parts) + ADAMW["weight_decay"] * w)
        end[f"muon/momentum/{name}"] = m
    return end


def balanced(bias: Weights, loads: list[list[int]]) -> Weights:
    """Each bias one step towards the experts that got fewer tokens than the mean."""
    moved = {}
    for (name, value), load in zip(bias.items(), loads, strict=True):
        error = torch.tensor([sum(load) / len(load) - n for n in load])
        moved[f"model/{name}"] = value + SHAPE.bias_rate * error.sign()
    return moved


def problems(run: Run, rows: int, done: int = DONE, skipped: int = SKIPPED) -> list[str]:
    """What one step of `run` leaves otherwise than the oracle; collective."""
    given, weights, bias = data(5, SHAPE), draw(SHAPE, 3), biases(SHAPE, 4)
    is_muon = run.optimizer.get("name") == "muon"
    state = moments(weights, is_muon)
    if done == 0:
        state = {name: torch.zeros_like(value) for name, value in state.items()}
    whole = {f"model/{name}": value for name, value in {**weights, **bias}.items()} | state
    engine = start(SHAPE, run, whole, done, skipped)
    told = step(engine, given, rows)
    grads, loads = gradients(given, weights, bias)
    grads = clipped(grads, run.optimizer["clip_grad"])
    mine = {n: w for n, w in weights.items() if is_muon and is_hidden(n, w)}
    rest = {n: w for n, w in weights.items() if n not in mine}
    right = adamw(rest, grads, state, done - skipped, told.lr) | balanced(bias, loads)
    right |= muon(mine, grads, state, told.lr)
    got = exported(engine)
    assert got.keys() == right.keys()
    apart = {n: float((got[n] - v).abs().max() / v.abs().max()) for n, v in right.items()}
    wrong = [f"{name} by {much:.1e}" for name, much in apart.items() if not much < TOLERANCE]
    right_rate = ADAMW["lr"] * (done + 1) / 15
    return wrong + ([] if math.isclose(told.lr, right_rate) else [f"rate {told.lr}"])


def options(kind: dict[str, Any], clip: float) -> Run:
    return Run(optimizer={**kind, "clip_grad": clip}, schedule=SCHEDULE)


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e4])
@pytest.mark.parametrize("kind", [ADAMW, MUON], ids=["adamw", "muon"])
def test_a_step_is_the_oracles(kind: dict[str, Any], clip: float) -> None:
    """Without a limit, above it, and far below it."""
    with alone():
        assert problems(options(kind, clip), 2) == []


@pytest.mark.parametrize("kind", [ADAMW, MUON], ids=["adamw", "muon"])
def test_so_is_the_first_step(kind: dict[str, Any]) -> None:
    with alone():
        assert problems(options(kind, 0.5), 4, done=0, skipped=0) == []


def all_problems(cases: list[tuple[Run, int]]) -> list[list[str]]:
    return [problems(*case) for case in cases]


@pytest.mark.parametrize("engine", ["native", pytest.param("deepspeed", marks=pytest.mark.slow)])
def test_so_is_a_step_of_two_ranks(engine: str) -> None:
    layouts = [(ADAMW, 2, 1), (MUON, 1, 1), (MUON, 2, 0)]
    if engine == "deepspeed":
        layouts = [(ADAMW, 2, 1), (MUON, 2, 0)]
    cases = [
        (replace(options(kind, 0.5), engine=engine, ep=ep, zero=zero), 2 - zero)
        for kind, ep, zero in layouts
    ]
    for rank in run_ranks(2, all_problems, cases):
        assert rank == [[]] * len(cases)


LAST = 0.2 + 0.4 * (1 + math.cos(29 / 30 * math.pi))
RATES = {
    # Warm-up from a tenth, then a cosine over the other 30 steps: its start, its middle, its end.
    "cosine": {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 25: 0.6, 39: LAST},
    # Flat until a quarter is left, then linear: 10, 5 and 1 of these ten steps are left.
    "wsd": {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 29: 1.0, 30: 1.0, 35: 0.6, 39: 0.28},
}


@pytest.mark.parametrize("name", RATES)
def test_the_rate_follows_its_closed_form(name: str) -> None:
    """Through the engine, at the first, warm-up, middle and last steps of 40."""
    weights, bias = draw(SHAPE, 3), biases(SHAPE, 4)
    state = {f"model/{n}": v for n, v in {**weights, **bias}.items()} | moments(weights, False)
    schedule = {"name": name, "warmup_steps": 10, "min_ratio": 0.2, "decay_fraction": 0.25}
    run = Run(optimizer=ADAMW, schedule=schedule, steps=40)
    with alone():
        for done, share in RATES[name].items():
            told = step(start(SHAPE, run, state, done), data(5, SHAPE), 4)
            assert told.lr == pytest.approx(ADAMW["lr"] * share), done
