"""torch's DataLoader over the same corpora, tuned as one who knows it would: the peer of `ingest`.

Every worker process reads whole tars one after another, keeps raw records in a shuffle buffer and
decodes what leaves it; batches are collated in the workers and kept ahead; workers persist.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from latentlm.media import decode_image

BUFFER = 256
AHEAD = 4  # batches that a worker keeps ready
MAX_PIXELS = 50_000_000


class Tars(IterableDataset[tuple[Tensor, int]]):
    """Decoded pictures and labels of tars, shuffled, for ever; `once` ends after one epoch."""

    def __init__(self, folder: Path, *, image_size: int, once: bool = False) -> None:
        self.paths = sorted(folder.glob("*.tar"))
        self.image_size, self.once = image_size, once

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        random = np.random.default_rng(number)
        mine = self.paths[number::workers]
        while True:
            held: list[tuple[bytes, int]] = []
            for path in random.permutation(np.array(mine, object)):
                for record in _records(path):
                    if len(held) < BUFFER:
                        held.append(record)
                        continue
                    place = int(random.integers(BUFFER))
                    yield self._decoded(*held[place])
                    held[place] = record
            for place in random.permutation(len(held)):
                yield self._decoded(*held[int(place)])
            if self.once:
                return

    def _decoded(self, data: bytes, label: int) -> tuple[Tensor, int]:
        pixels = decode_image(data, image_size=self.image_size, channels=3, max_pixels=MAX_PIXELS)
        return torch.from_numpy(pixels), label


def _records(path: Path) -> Iterator[tuple[bytes, int]]:
    with tarfile.open(path, "r|") as tar:
        found: dict[str, bytes] = {}
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            found[member.name.rpartition(".")[2]] = file.read()
            if len(found) == 2:
                yield found["jpg"], int(found["cls"])
                found = {}


class Latents(Dataset[tuple[Tensor, int]]):
    """Latents of a memory-mapped array, one a record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = len(np.load(path, mmap_mode="r"))
        self.array: Any = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.array is None:  # opened by each worker for itself
            self.array = np.load(self.path, mmap_mode="r")
        return torch.from_numpy(self.array[index].copy()), index


def tuned_loader(dataset: Any, *, batch_size: int, processes: int, shuffle: bool = False) -> Any:
    """A DataLoader with persistent workers that keep batches ahead."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle or None,
        num_workers=processes,
        prefetch_factor=AHEAD,
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )
