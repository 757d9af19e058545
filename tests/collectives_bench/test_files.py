"""What is no file of the kind that was asked for is refused at once, in one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import bench_reports
import pytest

from moelstrom import UserError
from moelstrom.collectives_bench import bucket, files
from moelstrom.collectives_bench.loads import read_load
from moelstrom.collectives_bench.schema import read

READERS: list[Callable[[Path], object]] = [
    read,
    lambda path: read_load(f"log:{path}"),
    lambda path: read_load(f"matrix:{path}"),
    lambda path: bucket.write(path, 1),
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.timeout(60)
def test_only_regular_files_are_opened(reader: Callable[[Path], object], tmp_path: Path) -> None:
    """A FIFO that nobody writes to would hang the reader, a device never end."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "folder/metrics.jsonl").mkdir(parents=True)
    (tmp_path / "link").symlink_to(fifo)
    for path in (fifo, Path("/dev/zero"), tmp_path / "folder", tmp_path / "link"):
        with pytest.raises(UserError, match=r": is no regular file; give a "):
            reader(path)
    for path, said in (
        (tmp_path / "none", "No such file"),
        (Path("a\0b"), "embedded null byte"),
        (tmp_path / ("x" * 300), "File name too long"),
        (fifo / "x", "Not a directory"),
    ):
        with pytest.raises(UserError, match=said):
            reader(path)


@pytest.mark.parametrize("reader", READERS)
def test_a_huge_file_is_not_read(reader: Callable[[Path], object], tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(files.LARGEST + 1)
    with pytest.raises(UserError, match=r"has 1,073,741,825 bytes, above 1,073,741,824; give a "):
        reader(tmp_path / "huge")


@pytest.mark.parametrize("levels", [80, 900, 100_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_json_is_refused(opening: str, levels: int, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    closing = "]" if opening == "[" else "}"
    for before, after in (("", ""), ('{"schema": "moelstrom.bench/1", "analysis": ', "}")):
        path.write_text(before + opening * levels + "1" + closing * levels + after)
        with pytest.raises(UserError, match=r"no JSON .nested deeper than 64 levels"):
            read(path)
    # A router's log: no record, as a line that a kill cut short.
    good = json.dumps({"kind": "router", "expert_load": [[1, 2, 3, 2]]})
    path.write_text(f"{good}\n{opening * levels}1{closing * levels}\n")
    assert read_load(f"log:{path}") is not None


@pytest.mark.parametrize(
    ("loads", "said"),
    [
        (None, "expert_load: Input should be a valid list"),
        ({"a": 1}, "expert_load: Input should be a valid list"),
        ([1, 2], r"expert_load\[0\]: Input should be a valid list"),
        ([[1, "2"]], r"expert_load\[0\]\[1\]: Input should be a valid number"),
        ([[1, None]], r"expert_load\[0\]\[1\]: Input should be a valid number"),
        ([[1, -2]], r"expert_load\[0\]\[1\]: Input should be greater than or equal to 0"),
        ([[1, float("nan")]], r"expert_load\[0\]\[1\]: Input should be"),
        (
            [[1], [1, 1e300]],
            r"expert_load\[1\]\[1\]: Input should be less than or equal to 10{18};",
        ),
    ],
)
def test_a_routers_log_of_other_types(loads: object, said: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [{"kind": "step"}, {"kind": "router", "expert_load": loads}]
    path.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(UserError, match=f"metrics.jsonl: line 2: {said}"):
        read_load(f"log:{tmp_path}")


def test_text_that_cannot_be_written_again_is_refused(tmp_path: Path) -> None:
    report = bench_reports.collectives()
    report.write(tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    (tmp_path / "report.json").write_text(text.replace('"a CPU"', '"\\ud800"'))
    with pytest.raises(UserError, match=r"no JSON .*surrogates not allowed"):
        read(tmp_path / "report.json")
