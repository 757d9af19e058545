"""torch DCP loads a flipped bit and shards of two saves in silence; ours names both."""

from pathlib import Path

import beside_dcp
import pytest


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The outcomes by damage."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("beside")
        patch.setenv(beside_dcp.TRACE, str(path / "trace"))
        return {row["damage"]: row for row in beside_dcp.compare(path)}


@pytest.mark.parametrize("damage", ["flipped_bit", "two_saves_mixed"])
def test_dcp_loads_wrong_data_in_silence(rows: dict[str, dict[str, str]], damage: str) -> None:
    assert rows[damage]["torch DCP"] == "loads, w1 wrong"


def test_dcp_runs_code_of_the_checkpoint(rows: dict[str, dict[str, str]]) -> None:
    assert "after it ran the file's code" in rows["pickle_as_index"]["torch DCP"]


@pytest.mark.parametrize("damage", [damage.__name__ for damage in beside_dcp.DAMAGES])
def test_ours_refuses(rows: dict[str, dict[str, str]], damage: str) -> None:
    row = rows[damage]
    assert row["moelstrom"].startswith("refused: step-00000002/")
    assert row["moelstrom resumes from"] == "step-00000001"


def test_both_load_what_is_not_damaged(tmp_path: Path) -> None:
    beside_dcp.run_ranks(beside_dcp.WORLD, beside_dcp.save, tmp_path)
    for form in beside_dcp.FORMATS:
        folder = tmp_path / form.name / "step-00000002"
        assert beside_dcp.outcome(form, folder, tmp_path / "trace") == "loads, all right"
