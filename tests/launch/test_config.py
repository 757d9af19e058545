"""Every mistake in a config is one clear message; every config that loads can be planned."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moelstrom import UserError
from moelstrom.launch.config import RECIPES, RunConfig, dump, load
from moelstrom.launch.train.plan import make_plan

BASE = {"steps": 10}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "run.yaml"


def leaves(section: Any, prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


FIELDS = list(leaves(RunConfig))


def check(source: str, overrides: list[str] | None = None) -> RunConfig | str:
    """The config, after it proved to be a whole one, or the message of the user's mistake."""
    try:
        config = load(source, overrides)
    except UserError as error:
        text = str(error)
        assert all(line.isprintable() for line in text.split("\n")), text
        assert len(text) < 20_000
        return text
    try:
        if config.cluster.address is None:
            make_plan(config)
    except UserError as error:
        return str(error)
    return config


# What a user wrote, and what the message must hold: the field in full, the value, the fix.
MISTAKES = {
    "model.hiden_size=64": ("model.hiden_size", "no such field", "model.hidden_size?"),
    "hidden_size=64": ("hidden_size", "no such field", "model.hidden_size?"),
    "modle.hidden_size=64": ("modle", "no such field", "model?"),
    "nope=1": ("nope", "no such field", "choose from name, seed, steps"),
    "layout={dp: 2, eq: 2}": ("layout.eq", "no such field", "choose from dp, ep"),
    "{1: 2}=1": ("{1: 2}", "no such field", "choose from"),
    "model.hidden_size=big": ("model.hidden_size", "'big'", "whole number"),
    "model.hidden_size=1e3": ("model.hidden_size", "'1e3'", "whole number"),
    "model.hidden_size=1.5": ("model.hidden_size", "1.5", "whole number"),
    "model.hidden_size=": ("model.hidden_size", "null", "whole number"),
    "model.hidden_size=12": ("model.hidden_size", "is 12", "a multiple of 8"),
    "model.moe.expert_size=12": ("model.moe.expert_size", "is 12", "a multiple of 8"),
    "model.num_heads=3": ("model.num_heads", "3", "a multiple of num_kv_heads 2"),
    "model.head_dim=31": ("model.rope_fraction", "of head_dim 31", "pairs"),
    "model.moe.top_k=9": ("model.moe.top_k", "is 9", "lower top_k"),
    "model.moe.num_experts=7": ("layout.ep: 2", "num_experts 7", "layout.ep to 1"),
    "model.moe.num_experts=0": ("model.moe.num_experts", "0", "give 1 or more"),
    "model.moe.score=relu": ("model.moe.score", "'relu'", "'softmax' or 'sigmoid'"),
    "model.pattern=[mamba/moe]": ("model.pattern", "'mamba/moe'", "one of attention"),
    "model.pattern=[attention/mo]": ("model.pattern", "'attention/mo'", "one of dense, moe"),
    "model.pattern=attention/moe": ("model.pattern", "'attention/moe'", "give a list"),
    "model.pattern=[]": ("model.pattern", "[]", "at least 1"),
    "model=3": ("model", "3", "`field: value` lines"),
    "model.num_layers=99999": ("model.num_layers", "99999", "16384 or less"),
    "layout.dp=3": ("layout.ep is 2", "dp 3", "set dp to a multiple of ep"),
    "layout.dp=999999": ("layout.ep is 2", "dp 999999", "set dp to a multiple of ep"),
    "layout.tp=2": ("layout.tp is 2", "2", "tp: 1"),
    "layout.zero=2": ("layout.zero is 2", "engine native", "set zero to 1, or engine to deepspeed"),
    "layout.zero=4": ("layout.zero", "4", "3 or less"),
    "layout.zero=-1": ("layout.zero", "-1", "0 or more"),
    "data.global_batch_size=17": ("data.global_batch_size", "17", "micro_batch_size 8"),
    "data.global_batch_size=24": ("data.global_batch_size", "24", "set it to 16 or 32"),
    "data.weights={code: -1}": ("data.weights", "code is -1", "0 or more"),
    "data.weights={code: 0}": ("data.weights", "0 (code)", "positive weight"),
    "data.weights={code: x}": ("data.weights.code", "'x'", "give a number"),
    "data.corpus=wiki": ("data.corpus", "'wiki'", "'python'"),
    'data.path="a\\0b"': ("data.path", "a\\x00b", "file name can hold"),
    "engine.precision=bfloat16": ("engine.precision", "'bfloat16'", "'fp32' or 'bf16'"),
    "engine.name=deepsped": ("engine.name", "'deepsped'", "'native' or 'deepspeed'"),
    "engine.compile=maybe": ("engine.compile", "'maybe'", "true or false"),
    "optimizer.name=adam": ("optimizer.name", "'adam'", "'adamw' or 'muon'"),
    "optimizer.lr=0": ("optimizer.lr", "0", "more than 0"),
    "optimizer.lr=.nan": ("optimizer.lr", "nan", "finite number"),
    "optimizer.betas=[0.9]": ("optimizer.betas.1", "is missing", "add it"),
    "optimizer.betas=[0.9, 2]": ("optimizer.betas.1", "2", "1.0 or less"),
    "optimizer.betas=[0.9, 1]": ("optimizer.betas", "[0.9, 1.0]", "below 1"),
    "schedule.warmup_steps=240": ("schedule.warmup_steps", "240", "raise steps"),
    "schedule.warmup_steps=169": ("schedule.warmup_steps", "169", "at most 168"),
    "schedule.decay_fraction=0.95": ("schedule.warmup_steps", "20", "at most 0.916"),
    "steps=0": ("steps", "0", "1 or more"),
    "steps=" + "9" * 30: ("steps", "9999", "2147483647 or less"),
    "steps=" + "9" * 9999: ("steps", "9999", "smaller whole number"),
    "steps=0x" + "f" * 9999: ("steps", "0xffff", "whole number"),
    "seed=3000000000": ("seed", "3000000000", "less than 2147483648"),
    "name=a b": ("name", "'a b'", "letters, digits"),
    "name=..": ("name", "'..'", "first a letter"),
    "name=7": ("name", "7", "give text, in quotes"),
    "cluster.launcher=slurm": ("cluster.launcher", "'slurm'", "'ray' or 'none'"),
    "cluster.gpus_per_worker=4": ("cluster.gpus_per_worker", "4", "1 or less"),
    "cluster.strategy=pack": ("cluster.strategy", "'pack'", "'PACK', 'SPREAD'"),
    "cluster.env={A: 1}": ("cluster.env.A", "1", "give text, in quotes"),
    "cluster.env={A=B: x}": ("cluster.env", "'A=B'", "drop the `=`"),
    "checkpoint.intervall=3": ("checkpoint.intervall", "no such field", "checkpoint.interval?"),
    "steps": ("--set steps", "", "write field.name=value"),
    "model..moe=1": ("--set model..moe=1", "", "write field.name=value"),
    "steps.more=1": ("--set steps.more=1", "steps holds 240", "drop it"),
    "steps=[": ("--set steps=[", "no usable YAML", "mend it"),
    "steps={a: 1, a: 2}": ("--set steps=", "`a` comes twice", "mend it"),
    "steps=!!int ''": ("--set steps=", "`!!` tag", "drop the tag"),
    "steps=!!set {a}": ("--set steps=", "tag:yaml.org,2002:set", "mend it"),
    "steps=" + "[" * 5000: ("--set steps=[[", "nested too deeply", "plain nested fields"),
}


@pytest.mark.parametrize("override", MISTAKES, ids=[m[:40] for m in MISTAKES])
def test_a_mistake_names_field_value_and_fix(override: str) -> None:
    message = check("tiny", [override])
    assert isinstance(message, str)
    assert "\n" not in message
    field, value, fix = MISTAKES[override]
    assert message.startswith(field), message
    assert value in message and fix in message, message


def test_mistakes_are_listed_together_a_line_each() -> None:
    overrides = ["layout.dp=4", "model.moe.num_experts=9", "steps=3"]
    title, *lines = str(check("tiny", overrides)).split("\n  ")
    assert title.endswith("tiny.yaml:")
    fields = "data.global_batch_size", "layout.ep", "schedule.warmup_steps"
    assert [line.split(":")[0] for line in lines] == list(fields)
    sections = ["layout.dp=3", "model.moe.top_k=9", "steps=x", "nope=1", "model.pattern=[1]"]
    _, *lines = str(check("tiny", sections)).split("\n  ")
    assert [line.split(" ")[0] for line in lines] == [
        "steps:",
        "model.pattern.0:",
        "model.moe.top_k",
        "layout.ep",
        "nope:",
    ]


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ("holds null", "`field: value`")),
        (b"- 1\n", ("holds [1]", "`field: value`")),
        (b"steps: 1\nname: x\nsteps: 2\n", ("line 3", "`steps` comes twice")),
        (b"steps: 1\n  name: x\n", ("line 2", "mend it")),
        (b"steps: 1\nname: \xff\n", ("utf-8", "UTF-8 text")),
        (b"\x7fELF\0\0\0", ("#x007f", "mend it")),
        (b"steps: 1\nlayout: &a\n  dp: *a\n", ("layout.dp", "{'dp': {...}}", "whole number")),
        (b"a: " + b"[" * 5000, ("nested too deeply",)),
        (b"name: x\n", ("steps: is missing; add it",)),
        (b"steps: 1\n1: 2\n", ("1: no such field",)),
    ],
)
def test_a_broken_file_is_named(file: Path, content: bytes, words: tuple[str, ...]) -> None:
    file.write_bytes(content)
    message = str(check(str(file)))
    assert all(word in message for word in words), message


def test_no_file(tmp_path: Path) -> None:
    for source, word in (
        (str(tmp_path), "Is a directory"),
        (str(tmp_path / "none.yaml"), "no such file"),
        (str(tmp_path / "a.yaml" / "b"), "no such file"),
        ("tinny", "no such file; give a YAML file or a recipe's name"),
        ("x" * 9000, "name too long"),
        ("a\0b", "null byte"),
        ("\x1b[31m", "\\x1b[31m"),
    ):
        assert word in str(check(source))


def test_a_folder_hides_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert load("tiny").name == "tiny"
    Path("tiny").rmdir()
    Path("tiny").write_text("steps: 3")
    assert load("tiny").steps == 3


def test_aliases_cannot_blow_up_a_message(file: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    file.write_text("\n".join([*lines, "steps: *a29", "data: {weights: *a29}"]))
    assert "steps: [[[...], " in str(check(str(file)))


def test_a_long_value_is_cut() -> None:
    message = str(check("tiny", [f"steps=[{', '.join(['x' * 50] * 6)}]"]))
    assert message.startswith("steps: ['xxx") and len(message) < 130


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_whole(recipe: Path, file: Path) -> None:
    config = check(recipe.stem)
    assert isinstance(config, RunConfig), config
    file.write_text(dump(config))
    assert load(str(file)) == config


def test_set_reaches_every_field() -> None:
    changed = load("tiny", ["optimizer.lr=1e-3", "model.moe={num_experts: 4}", "name=2024-01-01"])
    assert changed.optimizer.lr == 1e-3
    assert changed.model.moe.num_experts == 4 and changed.model.moe.expert_size == 512
    assert changed.name == "2024-01-01"
    assert load("tiny", ["steps=30", "steps=40"]).steps == 40
    assert load("tiny", ["cluster.env={A: 'b=c'}"]).cluster.env == {"A": "b=c"}


def test_paths_lie_in_the_output_folder() -> None:
    assert load("tiny").folder == Path("runs/tiny")
    config = load("tiny", ["output=/out", "checkpoint.path=saved"])
    assert config.placed_checkpoint.path == "/out/saved"
    assert load("tiny", ["checkpoint.path=/c"]).placed_checkpoint.path == "/c"


NUMBERS = st.integers() | st.integers(-3, 100) | st.floats() | st.just(10**40)
TEXT = st.text(max_size=20) | st.sampled_from(["", "\0", "a\nb", "~", "=", "a=b", "é\u2028", "1e3"])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT | st.dates() | st.binary(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.integers() | TEXT, inner, max_size=3)
    ),
    max_leaves=8,
)
FUZZ = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(field=st.sampled_from(FIELDS), value=VALUES)
@example(field="data.weights", value={"a": float("nan")})
@example(field="data.weights", value={"a\0": 1.0})
@example(field="cluster.env", value={"": "x"})
@example(field="layout.dp", value=4 * 10**9)
@example(field="model.hidden_size", value=8 * 10**300)
@example(field="optimizer.lr", value=10**4000)
def test_any_value_of_a_field_loads_or_is_named(file: Path, field: str, value: Any) -> None:
    document = {**BASE, **nested(field, value)}
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    outcome = check(str(file))
    if isinstance(outcome, str):
        assert field.split(".")[-1] in outcome or "!!binary" in yaml.safe_dump(value)
        return
    file.write_text(dump(outcome))
    assert load(str(file)) == outcome


@FUZZ
@given(
    section=st.sampled_from(["", "model", "model.moe", "data", "layout", "cluster", "evaluation"]),
    values=st.dictionaries(TEXT | st.sampled_from([f.split(".")[-1] for f in FIELDS]), VALUES),
)
def test_any_section_loads_or_is_refused(file: Path, section: str, values: dict[str, Any]) -> None:
    document = {**BASE, **(nested(section, values) if section else values)}
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    check(str(file))


MARKS = (
    "steps model moe layout dp : - ? [ ] { } , & * ! !! | > ' \" % @ ` # << = ~ . --- ... &a *a "
    "!!int !!str !!float !!bool !!null !!timestamp !!binary !!set !!omap !!pairs !!map !!seq "
    "!!python/tuple 1 0x 0b1 0o7 1_0 1:99 2001-99-99 .inf .nan yes null \\ \\x \\ud800"
)
SPACES = (" ", "\n", "\n  ", ": ", ": 1\n", "\t", "\0", "\ufeff", "\x85", "\ud800", '"\\0"')
TOKENS = st.sampled_from([*MARKS.split(), *SPACES])
TEXTS = st.text() | st.lists(TOKENS, max_size=25).map("".join)


@FUZZ
@given(content=st.binary() | TEXTS.map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_file_loads_or_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    check(str(file))
    file.write_bytes(b"steps: 10\nname: " + content)
    check(str(file))


@FUZZ
@given(name=st.sampled_from(FIELDS) | TEXT, text=TEXTS, equals=st.sampled_from(["=", "", " = "]))
def test_any_override_loads_or_is_refused(name: str, text: str, equals: str) -> None:
    check("tiny", [f"{name}{equals}{text}"])


@given(text=st.text(max_size=12) | TEXTS)
def test_any_text_survives_the_resolved_config(file: Path, text: str) -> None:
    try:
        config = load("tiny", [f"data.tokenizer={yaml.safe_dump(text)}"])
    except UserError:
        return
    file.write_text(dump(config))
    assert load(str(file)).data.tokenizer == config.data.tokenizer


def test_checks_cover_deepspeed() -> None:
    for overrides in (["layout.zero=3"], ["optimizer.name=muon"]):
        message = str(check("tiny", ["engine.name=deepspeed", *overrides]))
        assert message.startswith("layout.") and "set zero to" in message


def test_an_integer_that_no_field_holds_is_named_and_others_are_integers(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("steps: 2147483647\n")
    assert load(str(path)).steps == 2**31 - 1
    path.write_text(f"steps: {10**400}\n")
    with pytest.raises(UserError, match="steps"):
        load(str(path))
