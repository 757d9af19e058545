import pytest
from pydantic import ValidationError

from moelstrom import UserError
from moelstrom.launch.data.config import DataConfig, microbatches


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"weights": {"code": -1.0}}, ["weights", "code is -1.0", "0 or more"]),
        ({"weights": {"code": 0, "prose": 0}}, ["weights", "code, prose", "positive"]),
        ({"weights": {"code": float("nan")}}, ["weights.code", "finite"]),
        ({"weights": {"code": float("inf")}}, ["weights.code", "finite"]),
        (
            {"global_batch_size": 4, "micro_batch_size": 8},
            ["global_batch_size is 4", "micro_batch_size 8"],
        ),
        ({"global_batch_size": 12, "micro_batch_size": 8}, ["global_batch_size is 12"]),
        ({"seq_len": 0}, ["seq_len"]),
        ({"shuffle": True}, ["shuffle"]),
        ({"corpus": "pile"}, ["corpus", "python"]),
    ],
)
def test_bad_fields_are_named(fields: dict, words: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate(fields)
    for word in words:
        assert word in str(caught.value)


def test_microbatches() -> None:
    assert microbatches(64, 8, 4) == 2
    with pytest.raises(UserError, match=r"data\.global_batch_size: 64 .* dp 3; set it to 48 or 72"):
        microbatches(64, 8, 3)
    with pytest.raises(UserError, match=r"set it to 128$"):
        microbatches(64, 8, 16)
