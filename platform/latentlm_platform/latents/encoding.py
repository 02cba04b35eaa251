"""The encoding pass: records → decode → frozen codec → latent cache, streamed by Ray Data.

One pass over some chunks gives their shards, the latent statistics and the count of bad records. An
item is one chunk of one split; finished chunks are kept, so an interrupted pass goes on where it
was.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentlm.codec.sigma import LatentMoments
from latentlm_platform.corpora.bad_records import BadTally
from latentlm_platform.corpora.splits import SPREAD_CHUNKS
from latentlm_platform.experiment.sections import Latents
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.latents.data_graph import (
    TASK_CPUS,
    Item,
    arrays_of,
    legs,
    map_rows,
    read_items,
)
from latentlm_platform.latents.decoding import SPLITS, ChunkDecoder, SplitReader
from latentlm_platform.latents.encoded import EncodedChunk
from latentlm_platform.latents.encoder import EncoderActor
from latentlm_platform.latents.wire_rows import Arrays, Row, pack_row, unpack_row

Progress = Callable[[int], None]


@dataclass(frozen=True)
class EncodingPass:
    """Which chunks of each split are encoded, by which codec, into which cache."""

    decoders: Mapping[str, ChunkDecoder]
    chunks: Mapping[str, tuple[int, ...]]
    codec_folder: Path
    cache: LatentCache
    latents: Latents
    orientations: int

    def run(self, *, on_progress: Progress) -> dict[str, Any]:
        """Encode what is missing; the summary of these chunks. `on_progress`: records done."""
        items = [(SPLITS.index(split), chunk) for split in SPLITS for chunk in self.chunks[split]]
        todo: list[Item] = [(s, c) for s, c in items if not self.cache.has_chunk(SPLITS[s], c)]
        done = self.records - sum(self._size(item) for item in todo)
        on_progress(done)
        for leg in legs(todo):
            encoded = encode_items(
                leg,
                SplitReader(self.decoders),
                codec_folder=self.codec_folder,
                latents=self.latents,
                orientations=self.orientations,
                readers=self.decoders["train"].split.corpus.readers,
            )
            written = map_rows(encoded, ShardWriter(self.cache), num_cpus=TASK_CPUS)
            for arrays in arrays_of(written):
                done += self._size((int(arrays["split"][0]), int(arrays["chunk"][0])))
                on_progress(done)
        return self._summary()

    @property
    def records(self) -> int:
        """Records of all these chunks, the bad ones too."""
        splits = enumerate(SPLITS)
        return sum(self._size((s, chunk)) for s, name in splits for chunk in self.chunks[name])

    def _size(self, item: Item) -> int:
        split, chunk = item
        return int(self.decoders[SPLITS[split]].split.chunk_sizes[chunk])

    def _summary(self) -> dict[str, Any]:
        tally = BadTally()
        moments = LatentMoments.of_width(self.cache.latent_width)
        for split in SPLITS:
            for report in self._reports(split):
                tally.merge(BadTally.from_state(report["bad"]))
                if split == "train":
                    moments.merge(moments_from(report["moments"]))
        return {
            "records": self.records,
            "bad_records": tally.state(),
            "moments": moments_state(moments),
        }

    def _reports(self, split: str) -> Iterator[dict[str, Any]]:
        return (self.cache.read_report(split, chunk) for chunk in self.chunks[split])

    def chunk_moments(self) -> Iterator[LatentMoments]:
        """The moments of each chunk of the training split, for the error of their sum."""
        return (moments_from(report["moments"]) for report in self._reports("train"))


def encode_items(
    items: Sequence[Item],
    reader: Callable[[Item], Arrays],
    *,
    codec_folder: Path,
    latents: Latents,
    orientations: int,
    readers: int,
) -> Any:
    """A Ray Data set of encoded chunks, in the order of the items, by an actor pool of its own."""
    import ray.data

    return map_rows(
        read_items(items, reader, readers=readers),
        EncoderActor,
        fn_constructor_args=(codec_folder,),
        fn_constructor_kwargs={"batch_size": latents.batch_size, "orientations": orientations},
        compute=ray.data.ActorPoolStrategy(size=latents.actors),
        num_cpus=latents.cpus_per_actor,
        num_gpus=latents.gpus_per_actor or None,
    )


class ShardWriter:
    """Writes an encoded chunk and, last, its report; passes on only which one it was."""

    def __init__(self, cache: LatentCache) -> None:
        self.cache = cache

    def __call__(self, row: Row) -> Row:
        arrays = unpack_row(row)
        split, chunk = SPLITS[int(arrays["split"][0])], int(arrays["chunk"][0])
        about = json.loads(arrays["about"].tobytes())
        encoded = EncodedChunk.of_arrays(arrays)
        self.cache.write_chunk(split, chunk, encoded, keys=about["keys"])
        moments = LatentMoments.of_width(self.cache.latent_width)
        for side, mean in enumerate(encoded.mean):
            std = torch.from_numpy(encoded.std[side].copy()) if encoded.std else None
            moments.add(torch.from_numpy(mean.copy()), std)
        report = {"rows": encoded.good, "bad": about["bad"], "moments": moments_state(moments)}
        self.cache.write_report(split, chunk, report)
        return pack_row({name: arrays[name] for name in ("split", "chunk")})


def sampled_chunks(sizes: Any, *, records: int, seed: int) -> tuple[int, ...]:
    """Chunks drawn at random that hold at least `records`, in the order of their drawing.

    No fewer than `SPREAD_CHUNKS`; all, of a few.
    """
    held = np.flatnonzero(sizes)
    drawn = np.random.default_rng([seed, 3]).permutation(held)
    enough = int(np.searchsorted(np.cumsum(sizes[drawn]), records)) + 1
    return tuple(drawn[: max(enough, SPREAD_CHUNKS)].tolist())


def error_of(parts: Iterable[LatentMoments], scale: Callable[[LatentMoments], float]) -> float:
    """The standard error of `scale` of all parts together: the jackknife over parts.

    NaN of one part alone. Parts are chunks: records of a chunk may resemble one another.
    """
    together = list(parts)
    if len(together) < 2:
        return float("nan")
    left_out = []
    for gone in range(len(together)):
        rest = LatentMoments.of_width(len(together[0].sum_Z))
        for number, part in enumerate(together):
            if number != gone:
                rest.merge(part)
        left_out.append(scale(rest))
    spread = np.square(np.array(left_out) - np.mean(left_out)).sum()
    return float(np.sqrt((len(left_out) - 1) / len(left_out) * spread))


def moments_state(moments: LatentMoments) -> dict[str, Any]:
    """Moments as JSON can hold them: Python's floats keep every bit of fp64."""
    return {
        name: value.tolist() if isinstance(value, torch.Tensor) else value
        for name, value in vars(moments).items()
    }


def moments_from(state: dict[str, Any]) -> LatentMoments:
    """The moments that `moments_state` wrote."""
    fields: dict[str, Any] = {
        name: torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
        for name, value in state.items()
    }
    return LatentMoments(**fields)
