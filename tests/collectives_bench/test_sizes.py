"""Byte counts as people write them, there and back."""

import pytest

from moelstrom.collectives_bench.sizes import label, parse_bytes

GIVEN = {
    "7": 7,
    "8b": 8,
    "64KiB": 65_536,
    " 1.5 GiB ": 1_610_612_736,
    "8MB": 8_000_000,
    "3kb": 3_000,
    "2tib": 2_199_023_255_552,
    "1 TB": 1_000_000_000_000,
}
LABELS = {
    0: "0 B",
    1023: "1023 B",
    1024: "1 KiB",
    2**20 - 1: "1024 KiB",
    2**20: "1 MiB",
    3 * 2**29: "1.5 GiB",
    5 * 2**40: "5 TiB",
}


@pytest.mark.parametrize("text", GIVEN)
def test_text_is_bytes(text: str) -> None:
    assert parse_bytes(text) == GIVEN[text]


@pytest.mark.parametrize("text", ["", "KiB", "-1", "1e3", "4 KiBi", "12 parsecs", "1.KiB", "1 2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size: give bytes"):
        parse_bytes(text)


@pytest.mark.parametrize("count", LABELS)
def test_a_label_has_the_largest_unit(count: int) -> None:
    assert label(count) == LABELS[count]
