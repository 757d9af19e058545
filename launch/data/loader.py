"""Micro-batches of one data-parallel rank."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import UserError
from ...moe.batch import IGNORE, Batch
from .config import DataConfig, microbatches
from .dataset import Dataset
from .indexed import IndexedReader
from .prepare import load_dataset
from .sampler import Mixture, Windows


class Loader:
    """Reads this rank's share of every optimizer step.

    The global order of samples depends on (seed, dataset, weights, seq_len) alone: a step takes
    the next `global_batch_size` samples of it, whatever the number of ranks. Raises UserError.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        seed: int,
        dp_rank: int,
        dp_size: int,
        run_folder: Path | None = None,
    ) -> None:
        self.config = config
        self.seed = seed
        self.dp_rank = dp_rank
        self.dp_size = dp_size
        # One rank looks at the ids for all: where `train` started the run, it has already.
        self.dataset = load_dataset(config, check=dp_rank == 0, run_folder=run_folder)
        self.domains = self.dataset.domains
        self.vocab_size = self.dataset.vocab_size
        self.microbatches = microbatches(config.global_batch_size, config.micro_batch_size, dp_size)
        self._mixture = Mixture(_weights(config, self.dataset))
        self._passed: list[tuple[int, int]] = []
        self._windows = {
            index: Windows(self.dataset.open(name, "train"), name, config.seq_len, seed)
            for index, name in enumerate(self.domains)
            if self._mixture.weights[index] > 0
        }

    def next(self) -> list[Batch]:
        """This rank's micro-batches of the next step, each [micro_batch_size, seq_len]."""
        domains, numbers = self._take(self.config.global_batch_size)
        rounds = (self.microbatches, self.dp_size, self.config.micro_batch_size)
        mine = (part.reshape(rounds)[:, self.dp_rank] for part in (domains, numbers))
        return [self._read(*pair) for pair in zip(*mine, strict=True)]

    @property
    def position(self) -> int:
        """How many samples of the global order lie behind."""
        return sum(self._mixture.counts)

    def pass_over(self, ranges: list[tuple[int, int]]) -> None:
        """Never read the samples [first, end) of the global order, for each range."""
        self._passed = sorted(ranges)

    def skip(self) -> None:
        """Move to the next sample that `next` reads."""
        for first, end in self._passed:
            if first <= self.position < end:
                self._mixture.take(end - self.position)

    def _take(self, samples: int) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        while samples:
            self.skip()
            ahead = [first - self.position for first, _ in self._passed if first > self.position]
            run = min([samples, *ahead])
            parts.append(self._mixture.take(run))
            samples -= run
        domains, numbers = zip(*parts, strict=True)
        return np.concatenate(domains), np.concatenate(numbers)

    def state(self) -> dict[str, Any]:
        """Position in the global order, the same on every rank, and what that order hangs on."""
        return {
            "samples": self.position,
            "counts": dict(zip(self.domains, self._mixture.counts, strict=True)),
            **self._identity(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`, saved under any number of ranks. Raises UserError if it belongs to
        another order."""
        for field, value in self._identity().items():
            if state.get(field) != value:
                name = {"seed": "seed", "dataset": "data.path"}.get(field, f"data.{field}")
                raise UserError(
                    f"{name}: the checkpoint read its data with {field} {state.get(field)}, this "
                    f"run has {value}; set it back, or start a new run"
                )
        self._mixture.counts = [int(state["counts"][name]) for name in self.domains]

    def valid(self, domain: str, batches: int) -> Iterator[Batch]:
        """This rank's share of the first `batches` global batches of a domain's held-out text.

        Every rank yields as many; places beyond the text have IGNORE as target, which may fill a
        whole batch. Raises UserError for an unknown domain.
        """
        if domain not in self.domains:
            raise UserError(
                f"domain {domain}: {self.dataset.path} holds {', '.join(self.domains)}; use these"
            )
        return self._valid(self.dataset.open(domain, "valid"), batches)

    def _valid(self, reader: IndexedReader, batches: int) -> Iterator[Batch]:
        available = -(-(len(reader.tokens) - 1) // self.config.seq_len)
        windows = min(available, batches * self.config.global_batch_size)
        size = self.config.micro_batch_size
        for start in range(0, windows, size * self.dp_size):
            first = start + self.dp_rank * size
            rows = [
                _stored_window(reader, self.config.seq_len, index)
                for index in range(first, first + size)
            ]
            yield make_batch(np.stack(rows), self.dataset.eod)

    def _read(self, domains: np.ndarray, numbers: np.ndarray) -> Batch:
        windows = np.empty((len(domains), self.config.seq_len + 1), dtype=np.int64)
        for domain in np.unique(domains).tolist():
            rows = domains == domain
            windows[rows] = self._windows[domain].gather(numbers[rows])
        return make_batch(windows, self.dataset.eod)

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "seq_len": self.config.seq_len,
            "weights": dict(zip(self.domains, self._mixture.weights, strict=True)),
            "dataset": self.dataset.fingerprint,
        }


def make_batch(windows: np.ndarray, eod: int) -> Batch:
    """A batch from windows [B, seq_len + 1] int64, where IGNORE stands for no token."""
    tokens, targets = windows[:, :-1].copy(), windows[:, 1:].copy()
    ends = tokens == eod
    targets[ends] = IGNORE
    tokens[tokens == IGNORE] = 0
    documents = np.zeros(tokens.shape, dtype=np.int32)
    np.cumsum(ends[:, :-1], axis=1, dtype=np.int32, out=documents[:, 1:])
    return Batch(*(torch.from_numpy(part) for part in (tokens, targets, documents)))


def _stored_window(reader: IndexedReader, seq_len: int, index: int) -> np.ndarray:
    """Window `index` of the stored order [seq_len + 1] int64, IGNORE beyond the end."""
    window = np.full(seq_len + 1, IGNORE, dtype=np.int64)
    tokens = reader.tokens[index * seq_len : (index + 1) * seq_len + 1]
    window[: len(tokens)] = tokens
    return window


def _weights(config: DataConfig, dataset: Dataset) -> list[float]:
    """Weight per domain of the dataset; UserError if the config names another."""
    unknown = set(config.weights).difference(dataset.domains)
    if unknown:
        raise UserError(
            f"data.weights: {', '.join(sorted(unknown))} is not in {dataset.path}, which holds "
            f"{', '.join(dataset.domains)}; rename it or drop it"
        )
    if config.weights:
        return [config.weights.get(name, 0.0) for name in dataset.domains]
    return [float(info.train.tokens) for info in dataset.manifest.domains.values()]
