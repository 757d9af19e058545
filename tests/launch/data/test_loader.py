import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom import UserError
from moelstrom.launch.data.config import DataConfig
from moelstrom.launch.data.dataset import MANIFEST
from moelstrom.launch.data.loader import Loader, make_batch
from moelstrom.launch.data.prepare import prepare
from moelstrom.launch.data.sampler import Mixture, Windows, permutation
from moelstrom.launch.data.tokenizer import ByteTokenizer
from moelstrom.moe.batch import IGNORE, Batch

SEQ = 16
DP_SIZES = (1, 2, 3, 4, 6, 12)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two domains of a few hundred short documents, told apart by their letters."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for domain, letters in (("low", "abcdef"), ("up", "UVWXYZ")):
        (root / domain).mkdir()
        with (root / domain / "docs.jsonl").open("w") as file:
            for i in range(150 if domain == "up" else 300):
                text = "".join(random.choice(list(letters), random.integers(1, 60)))
                file.write(json.dumps({"text": f"{i} {text}"}) + "\n")
    domains = {name: root / name for name in ("low", "up")}
    prepare(root / "out", domains, ByteTokenizer(), valid_fraction=0.1, progress=False)
    return str(root / "out")


def config(path: str, **fields: object) -> DataConfig:
    defaults = {"seq_len": SEQ, "micro_batch_size": 2, "global_batch_size": 24}
    return DataConfig.model_validate({"path": path, **defaults, **fields})


def load(path: str, rank: int = 0, size: int = 1, seed: int = 7, **fields: object) -> Loader:
    return Loader(config(path, **fields), seed=seed, dp_rank=rank, dp_size=size)


def rows(batches: list[Batch]) -> list[tuple[int, ...]]:
    return [tuple(row) for batch in batches for row in batch.tokens.tolist()]


def steps(loader: Loader, count: int) -> list[list[Batch]]:
    return [loader.next() for _ in range(count)]


def global_order(ranks: list[list[Batch]]) -> list[tuple[int, ...]]:
    """The samples of one step, put back in order from every rank's micro-batches."""
    return [row for group in zip(*ranks, strict=True) for row in rows(list(group))]


def test_batch_fields() -> None:
    windows = np.array([[5, 6, 9, 7, 9], [9, 9, 5, IGNORE, IGNORE]])
    batch = make_batch(windows, eod=9)
    assert batch.tokens.tolist() == [[5, 6, 9, 7], [9, 9, 5, 0]]
    assert batch.targets.tolist() == [[6, 9, IGNORE, 9], [IGNORE] * 4]
    assert batch.documents.tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]
    dtypes = [part.dtype for part in (batch.tokens, batch.targets, batch.documents)]
    assert dtypes == [torch.int64, torch.int64, torch.int32]
    assert all(part.is_contiguous() for part in (batch.tokens, batch.targets, batch.documents))


def test_permutation() -> None:
    """Pinned: another order would silently change what a resumed run reads."""
    assert permutation(10, 1, 2, 3, 0).tolist() == [8, 1, 9, 3, 7, 5, 2, 0, 4, 6]
    assert sorted(permutation(1000, 5).tolist()) == list(range(1000))
    assert permutation(1000, 5).tolist() != permutation(1000, 6).tolist()


def test_an_epoch_reads_every_document_whole_and_once(path: str) -> None:
    loader = load(path)
    reader = loader.dataset.open("low", "train")
    stored = Counter(tuple(reader[i].tolist()) for i in range(len(reader)))
    orders = []
    for epoch in range(3):
        windows = Windows(reader, "low", SEQ, seed=7)
        numbers = np.arange(windows.per_epoch) + epoch * windows.per_epoch
        gathered = windows.gather(numbers)
        places = permutation(windows.per_epoch, *windows._key, epoch, 1)
        in_order = np.empty_like(gathered)
        in_order[places] = gathered
        assert (in_order[:-1, -1] == in_order[1:, 0]).all()
        stream = [*in_order[:, :-1].reshape(-1).tolist(), int(in_order[-1, -1])]
        assert 0 <= len(reader.tokens) - len(stream) < SEQ
        whole = "".join(map(chr, stream)).split(chr(256))[:-1]
        read = Counter((*map(ord, document), 256) for document in whole)
        assert not read - stored
        assert sum(read.values()) >= len(reader) - SEQ
        orders.append(stream)
    assert orders[0] != orders[1] != orders[2]


def test_a_gather_may_cross_epochs(path: str) -> None:
    reader = load(path).dataset.open("up", "train")
    windows = Windows(reader, "up", SEQ, seed=1)
    numbers = np.arange(windows.per_epoch - 3, windows.per_epoch + 3)
    together = windows.gather(numbers)
    apart = [Windows(reader, "up", SEQ, seed=1).gather(numbers[i : i + 1])[0] for i in range(6)]
    np.testing.assert_array_equal(together, np.stack(apart))


def test_targets_follow_tokens(path: str) -> None:
    for batch in load(path).next():
        inside = batch.tokens[:, :-1] != 256
        assert torch.equal(batch.targets[:, :-1][inside], batch.tokens[:, 1:][inside])
        assert (batch.targets[batch.tokens == 256] == IGNORE).all()
        assert (batch.targets[batch.tokens != 256] != IGNORE).all()
        assert (batch.documents.diff(dim=1) == (batch.tokens[:, :-1] == 256)).all()


@pytest.mark.parametrize("size", DP_SIZES)
def test_every_layout_reads_the_same_order(path: str, size: int) -> None:
    alone = [rows(step) for step in steps(load(path), 6)]
    ranks = [steps(load(path, rank, size), 6) for rank in range(size)]
    for step, expected in enumerate(alone):
        assert global_order([rank[step] for rank in ranks]) == expected


@settings(max_examples=25, deadline=None)
@given(
    chain=st.lists(st.tuples(st.sampled_from(DP_SIZES), st.integers(1, 9)), min_size=1, max_size=5),
    weights=st.sampled_from([{}, {"low": 1, "up": 3}, {"up": 0.5}]),
    seed=st.integers(0, 2**40),
)
def test_resuming_elsewhere_reads_everything_once(
    path: str, chain: list[tuple[int, int]], weights: dict[str, float], seed: int
) -> None:
    total = sum(count for _, count in chain)
    alone = load(path, seed=seed, weights=weights)
    expected = [rows(step) for step in steps(alone, total)]
    read: list[list[tuple[int, ...]]] = []
    state = None
    for size, count in chain:
        loaders = [load(path, rank, size, seed, weights=weights) for rank in range(size)]
        for loader in loaders:
            if state is not None:
                loader.load_state(json.loads(state))
        ranks = [steps(loader, count) for loader in loaders]
        read += [global_order([rank[step] for rank in ranks]) for step in range(count)]
        states = {json.dumps(loader.state()) for loader in loaders}
        assert len(states) == 1
        state = states.pop()
    assert read == expected
    assert json.loads(state or "") == alone.state()


@settings(max_examples=50, deadline=None)
@given(
    weights=st.lists(st.floats(0, 100), min_size=1, max_size=5).filter(lambda w: sum(w) > 1e-3),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=4),
)
def test_mixture_keeps_its_shares(weights: list[float], cuts: list[int]) -> None:
    mixture = Mixture(weights)
    domains, numbers = (np.concatenate(p) for p in zip(*map(mixture.take, cuts), strict=True))
    whole = Mixture(weights).take(sum(cuts))
    np.testing.assert_array_equal(domains, whole[0])
    for domain, weight in enumerate(mixture.weights):
        mine = domains == domain
        assert numbers[mine].tolist() == list(range(mine.sum()))
        behind = weight * np.arange(1, len(mine) + 1) - np.cumsum(mine)
        assert np.abs(behind).max() <= len(weights)
        assert weight > 0 or not mine.any()


def test_weights_choose_domains(path: str) -> None:
    loader = load(path, weights={"up": 3, "low": 1}, global_batch_size=40)
    loader.next()
    assert loader.state()["counts"] == {"low": 10, "up": 30}
    only = load(path, weights={"up": 1})
    assert all(not set(row) & set(b"abcdef") for row in rows(only.next()))
    by_tokens = load(path)
    steps(by_tokens, 10)
    domains = by_tokens.dataset.manifest.domains
    share = domains["low"].train.tokens / sum(info.train.tokens for info in domains.values())
    assert by_tokens.state()["counts"]["low"] == pytest.approx(240 * share, abs=1)


def test_each_domain_has_its_own_order(path: str) -> None:
    reader = load(path).dataset.open("low", "train")
    one, two = (Windows(reader, name, SEQ, seed=7).gather(np.arange(20)) for name in ("low", "up"))
    assert not np.array_equal(one, two)


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 24)],
        [(10, 40), (30, 60)],
        [(30, 60), (10, 40)],
        [(5, 50), (10, 20), (15, 55), (54, 60)],
        [(20, 40), (40, 41), (41, 70)],
        [(0, 30), (0, 10), (200, 210)],
        [(10, 10), (12, 13)],
    ],
)
def test_passed_ranges_are_never_read(path: str, ranges: list[tuple[int, int]]) -> None:
    """However they overlap and whatever their order."""
    whole = [row for step in steps(load(path), 10) for row in rows(step)]
    kept = [row for i, row in enumerate(whole) if not any(a <= i < b for a, b in ranges)]
    loader = load(path)
    loader.pass_over(ranges)
    read = [row for step in steps(loader, len(kept) // 24) for row in rows(step)]
    assert read == kept[: len(read)]
    assert loader.position >= len(read)


def test_seed_changes_the_order(path: str) -> None:
    assert rows(load(path, seed=1).next()) != rows(load(path, seed=2).next())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("batches", [1, 2, 10_000])
def test_valid_is_the_same_text_for_every_layout(path: str, size: int, batches: int) -> None:
    loader = load(path)
    stored = loader.dataset.open("low", "valid").tokens.tolist()
    end = min(len(stored) - 1, batches * 24 * SEQ)
    ranks = [list(load(path, rank, size).valid("low", batches)) for rank in range(size)]
    assert len({len(rank) for rank in ranks}) == 1
    assert all(batch.tokens.shape == (2, SEQ) for rank in ranks for batch in rank)
    groups = [batch for group in zip(*ranks, strict=True) for batch in group]
    targets = torch.cat([batch.targets for batch in groups]).reshape(-1)
    tokens = torch.cat([batch.tokens for batch in groups]).reshape(-1)
    assert tokens[:end].tolist() == stored[:end]
    expected = [b if a != 256 else IGNORE for a, b in itertools.pairwise(stored[: end + 1])]
    assert targets[:end].tolist() == expected
    assert (targets[end:] == IGNORE).all()


@pytest.mark.parametrize("extra", [1, 2, SEQ - 1, SEQ, SEQ + 1])
def test_valid_reads_the_tail(tmp_path: Path, extra: int) -> None:
    """To the last token, where whole windows fill whole batches and where not."""
    (tmp_path / "x.txt").write_text("a" * 4 * SEQ + "b" * extra)
    files = {"x": tmp_path / "x.txt"}
    prepare(tmp_path / "out", files, ByteTokenizer(), valid_fraction=0, progress=False)
    for kind in ("bin", "idx"):
        (tmp_path / "out" / f"x-valid.{kind}").unlink()
        (tmp_path / "out" / f"x-valid.{kind}").hardlink_to(tmp_path / "out" / f"x-train.{kind}")
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    manifest["domains"]["x"]["valid"] = manifest["domains"]["x"]["train"]
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(manifest))
    small = {"micro_batch_size": 1, "global_batch_size": 1}
    batches = list(load(str(tmp_path / "out"), **small).valid("x", 10_000))
    targets = torch.cat([batch.targets.reshape(-1) for batch in batches])
    assert targets[targets != IGNORE].tolist() == [97] * (4 * SEQ - 1) + [98] * extra + [256]


@pytest.mark.parametrize("size", [1, 3])
def test_a_split_without_targets_counts_none(tmp_path: Path, size: int) -> None:
    """Nothing held out: no batch on any rank."""
    (tmp_path / "x.txt").write_text("a" * 100)
    files = {"x": tmp_path / "x.txt"}
    prepare(tmp_path / "out", files, ByteTokenizer(), valid_fraction=0, progress=False)
    for rank in range(size):
        loader = load(str(tmp_path / "out"), rank, size)
        assert list(loader.valid("x", 4)) == []
        assert len(loader.next()) == 12 // size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 8}, "^seed: .* seed 7, this run has 8"),
        ({"seq_len": 8}, r"^data\.seq_len: .* seq_len 16, this run has 8"),
        ({"weights": {"low": 1.0}}, r"^data\.weights: "),
    ],
)
def test_state_of_another_order_is_refused(path: str, change: dict, message: str) -> None:
    state = load(path).state()
    with pytest.raises(UserError, match=message):
        load(path, **change).load_state(state)


def test_state_of_another_dataset_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "low").mkdir()
    lines = (json.dumps({"text": f"other {i}"}) for i in range(200))
    (tmp_path / "low" / "x.jsonl").write_text("\n".join(lines))
    prepare(tmp_path / "out", {"low": tmp_path / "low"}, ByteTokenizer(), progress=False)
    state = load(path, weights={"low": 1}).state()
    state["weights"] = {"low": 1.0}
    with pytest.raises(UserError, match=r"^data\.path: "):
        load(str(tmp_path / "out"), weights={"low": 1}).load_state(state)


def test_config_errors_name_the_field(path: str) -> None:
    with pytest.raises(UserError, match=r"data\.weights: code is not in .* holds low, up"):
        load(path, weights={"code": 1})
    with pytest.raises(UserError, match=r"data\.seq_len: 100000 needs 100001 tokens"):
        load(path, seq_len=100_000)
    with pytest.raises(UserError, match=r"data\.global_batch_size: 24 .* dp 5"):
        load(path, 0, 5)
    with pytest.raises(UserError, match=r"domain code: .* holds low, up"):
        load(path).valid("code", 1)
