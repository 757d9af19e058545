"""The fusion buffer: chosen at saturation, written without touching the rest of a config."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import network_reports as nr
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moelstrom import UserError
from moelstrom.collectives_bench.bucket import choose, write
from moelstrom.launch.config import RECIPES, load


def _line(alpha: float, beta: float = 1e10) -> Callable[[int], float]:
    return lambda size: alpha + size / beta


def test_the_bucket_is_the_size_that_saturates_and_no_larger() -> None:
    # 0.9 of 10 GB/s needs 9 alpha beta = 9 MB.
    found = choose(nr.report(nr.sweep("reduce_scatter", range(8), _line(1e-4))))
    assert (found.bytes, found.mib, found.op, found.size) == (8 * nr.MIB, 8, "reduce_scatter", 8)
    wide = choose(nr.report(nr.sweep("reduce_scatter", range(8), _line(1e-4))), share=0.5)
    assert wide.mib == 1


def test_the_engines_own_call_decides() -> None:
    fast, slow = _line(1e-5), _line(2e-4)
    found = choose(
        nr.report(
            [
                *nr.sweep("all_reduce", range(9), fast),
                *nr.sweep("reduce_scatter", range(4), fast, "node"),
                *nr.sweep("reduce_scatter", range(8), fast, in_place=True),
                *nr.sweep("reduce_scatter", range(8), fast, dtype="bf16"),
                *nr.sweep("reduce_scatter", range(8), fast, at_once=2),
                *nr.sweep("reduce_scatter", range(8), slow),
            ]
        )
    )
    assert (found.op, found.size, found.mib) == ("reduce_scatter", 8, 16)


def test_without_a_reduction_or_saturation_nothing_is_chosen() -> None:
    with pytest.raises(UserError, match="no reduce_scatter or all_reduce"):
        choose(nr.report(nr.sweep("broadcast", range(8), _line(1e-4))))
    with pytest.raises(UserError, match="raise max_bytes"):
        choose(nr.report(nr.sweep("all_reduce", range(8), _line(1.0))))


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_takes_a_bucket_and_keeps_its_lines(recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_bytes(recipe.read_bytes())
    before = load(str(path))
    write(path, 48)
    after = load(str(path))
    assert after.engine.bucket_mb == 48
    changed = after.engine.model_copy(update={"bucket_mb": before.engine.bucket_mb})
    assert after.model_copy(update={"engine": changed}) == before
    kept = iter(path.read_text().splitlines())
    assert all(line in kept for line in recipe.read_text().splitlines())


COMMENTED = "# top\nname: x  # name\nengine:  # which\n  # how\n  bucket_mb: 64  # size\n# end\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (COMMENTED, COMMENTED.replace("64", "7")),
        (COMMENTED.replace("\n", "\r\n"), COMMENTED.replace("64", "7").replace("\n", "\r\n")),
        ("engine: {name: native}  # short\n", "engine: {bucket_mb: 7, name: native}  # short\n"),
        ("engine: {}\n", "engine: {bucket_mb: 7}\n"),
        ("{steps: 3}\n", "{engine: {bucket_mb: 7}, steps: 3}\n"),
        ("steps: 3", "steps: 3\n\nengine:\n  bucket_mb: 7\n"),
        (
            "é: ü\nengine:\n    name: native\n",
            "é: ü\nengine:\n    bucket_mb: 7\n    name: native\n",
        ),
    ],
)
def test_only_the_bucket_changes(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_bytes(text.encode())
    write(path, 7)
    assert path.read_bytes().decode() == expected
    write(path, 9)
    assert yaml.safe_load(path.read_text())["engine"]["bucket_mb"] == 9


@pytest.mark.parametrize(
    "text",
    [
        "engine: native\n",
        "other: &e {bucket_mb: 1}\nengine: *e\n",
        "engine: {bucket_mb: 1}\nengine: {bucket_mb: 2}\n",
        "steps: 3\n...\n",
        "- a\n",
        "",
        "a: [\n",
    ],
)
def test_what_cannot_be_edited_is_refused_and_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"train\.yaml: "):
        write(path, 7)
    assert path.read_text() == text


def test_a_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory"):
        write(tmp_path / "none.yaml", 7)


names = st.sampled_from(["engine", "model", "steps", "name"])
values = st.one_of(st.integers(), st.text("ab #:'\n", max_size=6), st.none(), st.booleans())
mappings = st.dictionaries(st.sampled_from(["name", "bucket_mb", "x"]), values, min_size=1)


@given(st.dictionaries(names, mappings, min_size=1), st.sampled_from([None, True, False]))
def test_any_config_reads_back_as_itself_with_the_bucket(config: dict, style: bool | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.yaml"
        path.write_text(yaml.safe_dump(config, default_flow_style=style, sort_keys=False))
        write(path, 7)
        after = yaml.safe_load(path.read_text())
    assert after == {**config, "engine": {**config.get("engine", {}), "bucket_mb": 7}}
