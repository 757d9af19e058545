"""What a layout cannot be with a model, and tensors that are not the model's."""

import re
from collections.abc import Iterator, Mapping

from .... import UserError
from ...config import ModelConfig, OptimizerConfig
from ...engines import ENGINES
from ...grid import Shape
from ...model import model_specs
from ...optim.rules import STATE, rule
from ...state.source import TensorInfo
from .layout import StateLayout
from .parameters import Skeleton

RANDOM_STATE = re.compile(r"rng/\d{1,9}/(cpu|cuda)")


def check_layout(model: ModelConfig, target: StateLayout, optimizer: OptimizerConfig) -> None:
    """Raise UserError where the model's sizes or the optimizer do not allow the layout."""
    if model.vocab_size == 0:
        raise UserError("model.vocab_size is 0: give the size that the tokenizer has")
    for problem in misfits(model, target):
        raise UserError(f"layout: {problem}")
    if target.pp > model.num_layers:
        raise UserError(
            f"layout: pp is {target.pp}, above model.num_layers {model.num_layers}: every stage "
            f"needs a layer, so set pp to {model.num_layers} or less"
        )
    for problem in ENGINES[target.engine].problems(target, target.zero, optimizer):
        raise UserError(f"layout: {problem}")


def misfits(model: ModelConfig, shape: Shape) -> Iterator[str]:
    """What the ranks of `shape` cannot split evenly, beginning with the layout's field."""
    for spec in dict.fromkeys(model_specs(model).values()):
        if spec.experts and spec.experts % shape.ep:
            yield _undivided("ep", shape.ep, spec.experts_field, spec.experts)
        if not spec.cut.allows(shape.tp):
            if not spec.cut.copies:
                yield _undivided("tp", shape.tp, spec.cut.field, spec.cut.units)
            yield (
                f"tp is {shape.tp} with model.{spec.cut.field} {spec.cut.units}: one must divide "
                "the other, so that ranks split the heads or hold copies of one"
            )


def _undivided(degree: str, ranks: int, field: str, number: int) -> str:
    return (
        f"{degree} is {ranks}, which does not divide model.{field} {number}: choose a divisor of "
        f"{number}"
    )


def check_tensors(
    tensors: Mapping[str, TensorInfo], model: Skeleton, optimizer: OptimizerConfig
) -> None:
    """Raise UserError unless `tensors` are the model's weights and buffers, in their shapes, with
    all of an optimizer state or none of it; generators' state may come with them."""
    expected = dict(_expected(model, optimizer))
    for name, info in tensors.items():
        if RANDOM_STATE.fullmatch(name):
            continue
        if name not in expected:
            raise _other(f"it has {name!r}, the config's model and optimizer do not")
        if tuple(info.shape) != expected[name]:
            found, wanted = list(info.shape), list(expected[name])
            raise _other(f"{name!r} is {found}, in the config's model it is {wanted}")
    kinds = {_kind(name) for name in tensors} | {"model"}
    for name in expected:
        if name not in tensors and _kind(name) in kinds:
            raise _other(f"it has no {name!r}")


def _expected(model: Skeleton, optimizer: OptimizerConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    for p in model.parameters:
        update = rule(p.spec, optimizer)
        for t in p.logicals():
            yield f"model/{t.name}", t.shape
            for key in STATE[update]:
                yield f"{update}/{key}/{t.name}", t.shape
    for name, spec in model.buffers:
        yield f"model/{name}", spec.shape


def _kind(name: str) -> str:
    """`model`, or one tensor of one rule's state such as `adamw/exp_avg`."""
    head, _, rest = name.partition("/")
    return head if head == "model" else f"{head}/{rest.partition('/')[0]}"


def _other(what: str) -> UserError:
    return UserError(f"the checkpoint's tensors are not those of the config: {what}: {_FIX}")


_FIX = "use the model and optimizer sections of the run that saved it"
