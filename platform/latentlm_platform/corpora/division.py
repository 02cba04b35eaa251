"""Which records of a corpus are held out: a share of every class, carried over all chunks.

A class of n records of which m are held out gives one of each of the m stretches [k·n//m,
(k+1)·n//m) of its records in the corpus's order, chosen by a number keyed by (seed, class, k): so
they lie all over the corpus, however it is sorted. m is n · fraction rounded, with what rounding
leaves carried from class to class, so that the total is right too. Records without a class are a
class of their own.

Computed once for an index, seed and fraction, in blocks, and kept beside the index: a bit a record
and a count a chunk, both memory-mapped.
"""

import secrets
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from latentlm_platform.corpora.chunk_index import Int32s, Int64s, map_array
from latentlm_platform.corpora.keyed_numbers import keyed_fractions, keyed_numbers

BLOCK_RECORDS = 2**20  # divisible by the 8 records of a byte


class Division(NamedTuple):
    """Where the held-out records lie: their number in each chunk, and a bit for each record."""

    counts: Int64s
    bits: npt.NDArray[np.uint8]

    def held_out(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Whether each of the records [start, stop) of the corpus is held out."""
        first = start // 8
        bits = np.unpackbits(self.bits[first : -(-stop // 8)])
        return bits[start - 8 * first : stop - 8 * first].astype(np.bool_)


@lru_cache(maxsize=16)
def open_division(folder: Path, *, seed: int, fraction: float) -> Division:
    """The division of the index in `folder`, made now if it is the first time."""
    stem = f"held_out-seed{seed}-fraction{fraction!r}"
    bits, counts = folder / f"{stem}.bits.npy", folder / f"{stem}.counts.npy"
    if not (bits.exists() and counts.exists()):
        sizes, labels = map_array(folder / "chunk_sizes.npy"), map_array(folder / "labels.npy")
        packed = [np.packbits(b) for b in divide(labels, seed=seed, fraction=fraction)]
        _save(bits, np.concatenate(packed or [np.empty(0, np.uint8)]))
        _save(counts, _chunk_counts(sizes, bits))
    return Division(map_array(counts), map_array(bits))


def divide(labels: Int32s, *, seed: int, fraction: float) -> Iterator[npt.NDArray[np.bool_]]:
    """Whether each record is held out, block by block; `labels` is its class or −1."""
    blocks = [slice(s, s + BLOCK_RECORDS) for s in range(0, len(labels), BLOCK_RECORDS)]
    classes = 2 + max((int(labels[b].max()) for b in blocks), default=-1)  # −1 is class 0 here
    sizes = np.zeros(classes, np.int64)
    for block in blocks:
        sizes += np.bincount(labels[block] + 1, minlength=classes)
    edges = np.rint(np.cumsum(sizes) * fraction).astype(np.int64)
    held = np.diff(edges, prepend=0)
    seen = np.zeros(classes, np.int64)
    for block in blocks:
        label = labels[block].astype(np.int64) + 1
        rank = seen[label] + _rank_within(label, classes)
        seen += np.bincount(label, minlength=classes)
        yield _is_chosen(rank, label, sizes[label], held[label], seed)


def _rank_within(label: Int64s, classes: int) -> Int64s:
    """How many earlier records of the block have the same class."""
    order = np.argsort(label, kind="stable")
    starts = np.cumsum(np.bincount(label, minlength=classes))
    first = np.concatenate([[0], starts[:-1]])
    rank = np.empty(len(label), np.int64)
    rank[order] = np.arange(len(label)) - first[label[order]]
    return rank


def _is_chosen(
    rank: Int64s, label: Int64s, size: Int64s, held: Int64s, seed: int
) -> npt.NDArray[np.bool_]:
    """Whether the record of this rank is the one that its stretch of the class gives."""
    stretch = ((rank + 1) * held - 1) // size  # −1 // n is −1 where a class gives none
    low = stretch * size // np.maximum(held, 1)
    high = (stretch + 1) * size // np.maximum(held, 1)
    key = keyed_numbers(seed, label) ^ stretch.astype(np.uint64)
    offset = np.floor(keyed_fractions(seed, key) * (high - low)).astype(np.int64)
    chosen: npt.NDArray[np.bool_] = (rank == low + offset) & (held > 0)
    return chosen


def _chunk_counts(sizes: Int64s, path: Path) -> Int64s:
    """Held-out records of each chunk, by running sums over blocks of bits."""
    ends = np.cumsum(sizes)
    bits = np.load(path, mmap_mode="r")
    before = np.zeros(len(ends), np.int64)  # held out before each chunk's end
    total = 0
    for start in range(0, int(ends[-1]) if len(ends) else 0, BLOCK_RECORDS):
        block = np.unpackbits(bits[start // 8 : (start + BLOCK_RECORDS) // 8])
        running = np.concatenate([[0], np.cumsum(block, dtype=np.int64)])
        here = slice(*np.searchsorted(ends, [start, start + BLOCK_RECORDS], side="right"))
        before[here] = total + running[ends[here] - start]
        total += int(running[-1])
    return np.diff(before, prepend=0)


def _save(path: Path, array: npt.NDArray[np.generic]) -> None:
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.unfinished")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)


@lru_cache(maxsize=64)
def chunk_starts(path: Path) -> Int64s:
    """The number of the first record of each chunk (8 bytes a chunk)."""
    sizes = map_array(path / "chunk_sizes.npy")
    starts = np.zeros(len(sizes), np.int64)
    np.cumsum(sizes[:-1], out=starts[1:])
    return starts
