"""The order in which samples are read: a function of seed, data and weights only."""

import zlib
from dataclasses import dataclass

import numpy as np

from ... import UserError
from .indexed import IndexedReader


def permutation(size: int, *key: int) -> np.ndarray:
    """A permutation of [0, size) drawn by `key` (integers >= 0), int64.

    Built on raw PCG64 output, which NumPy promises to keep, as it does not for
    `Generator.permutation`: a resumed run must see the same order under another NumPy.
    """
    draws = np.random.PCG64(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(draws, kind="stable")


@dataclass(frozen=True)
class _Epoch:
    """One pass over the documents: `starts` [documents] is where each one begins in the stream,
    `shifts` what leads from a stream position to the file, `windows` the order of the windows."""

    number: int
    starts: np.ndarray
    shifts: np.ndarray
    windows: np.ndarray


class Windows:
    """An endless sequence of windows over the training documents of one domain.

    Every epoch shuffles the documents, joins them into one stream, cuts it into windows that share
    one token with the next (each token is a target once), and shuffles these. Memory: a few
    integers per document and window; tokens stay in the file.
    """

    def __init__(self, reader: IndexedReader, domain: str, seq_len: int, seed: int) -> None:
        self.reader = reader
        self.seq_len = seq_len
        self.per_epoch = (len(reader.tokens) - 1) // seq_len
        if self.per_epoch < 1:
            raise UserError(
                f"data.seq_len: {seq_len} needs {seq_len + 1} tokens, but domain {domain} has "
                f"{len(reader.tokens)} to train on; lower it, add text, or drop the domain from "
                "data.weights"
            )
        self._key = (seed, zlib.crc32(domain.encode()))
        self._epoch = self._shuffle(0)

    def gather(self, samples: np.ndarray) -> np.ndarray:
        """Tokens of the windows number `samples` [N] (rising), as [N, seq_len + 1] int64."""
        epochs, within = np.divmod(samples, self.per_epoch)
        parts = []
        for number in np.unique(epochs).tolist():
            if number != self._epoch.number:
                self._epoch = self._shuffle(number)
            parts.append(self._read(self._epoch, within[epochs == number]))
        return np.concatenate(parts)

    def _shuffle(self, number: int) -> _Epoch:
        documents = permutation(len(self.reader), *self._key, number, 0)
        offsets = self.reader.offsets[:-1][documents]
        lengths = np.diff(self.reader.offsets)[documents]
        starts = np.cumsum(lengths) - lengths
        windows = permutation(self.per_epoch, *self._key, number, 1)
        return _Epoch(number, starts, offsets - starts, windows)

    def _read(self, epoch: _Epoch, within: np.ndarray) -> np.ndarray:
        first = epoch.windows[within] * self.seq_len
        stream = first[:, None] + np.arange(self.seq_len + 1)
        document = np.searchsorted(epoch.starts, stream, side="right") - 1
        return self.reader.tokens[stream + epoch.shifts[document]].astype(np.int64)


class Mixture:
    """Chooses the domain of each sample: the one furthest behind its share.

    `counts` are the samples taken so far per domain, and all there is to resume.
    """

    def __init__(self, weights: list[float]) -> None:
        total = sum(weights)
        self.weights = [weight / total for weight in weights]
        self.counts = [0] * len(weights)

    def take(self, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """The next samples' domains, and their numbers within these domains: [samples] int64."""
        domains = np.empty(samples, dtype=np.int64)
        numbers = np.empty(samples, dtype=np.int64)
        total = sum(self.counts)
        for i in range(samples):
            due = total + i + 1
            behind = [w * due - n for w, n in zip(self.weights, self.counts, strict=True)]
            domain = behind.index(max(behind))
            domains[i], numbers[i] = domain, self.counts[domain]
            self.counts[domain] += 1
        return domains, numbers
