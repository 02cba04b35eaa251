"""The encoding pass: records → decode → frozen codec → latent cache, streamed by Ray Data.

One pass over the corpus gives the cache, the latent statistics and the list of bad records. A row
is one chunk of one split; finished chunks are kept, so an interrupted pass goes on where it was.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentlm.codec.sigma import LatentMoments
from latentlm_platform.batches.stream import DATA_TASK_CPUS, quieten_data
from latentlm_platform.corpora.class_images import BadRecord
from latentlm_platform.corpora.splits import Splits
from latentlm_platform.experiment.sections import Latents
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.latents.encoder import EncoderActor
from latentlm_platform.latents.wire_rows import Row, pack_row, unpack_row

SPLITS = ("train", "held_out")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EncodingPass:
    """What is encoded, by which codec, into which cache.

    `kept_splits` are written to the cache; the others only give statistics and bad records.
    """

    splits: Splits
    codec_folder: Path
    cache: LatentCache
    latents: Latents
    kept_splits: tuple[str, ...] = SPLITS

    def run(self, *, on_progress: Progress) -> dict[str, Any]:
        """Encode what is missing; the summary of the whole cache, bad records included.

        `on_progress` is told (records done, records in all).
        """
        todo = [
            (s, c) for s in SPLITS for c in self._chunks(s) if not self._report_path(s, c).exists()
        ]
        sizes = {s: self._sizes(s) for s in SPLITS}
        total = sum(sum(sizes[s]) for s in SPLITS)
        done = total - sum(sizes[s][c] for s, c in todo)
        on_progress(done, total)
        for split, chunk in self._encode(todo):
            done += sizes[split][chunk]
            on_progress(done, total)
        return self._summary()

    def _encode(self, todo: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
        if not todo:
            return
        import ray.data

        quieten_data()
        items = [{"split": split, "chunk": chunk} for split, chunk in todo]
        rows = ray.data.from_items(items, override_num_blocks=len(items))
        decoded = rows.map(_ChunkReader(self.splits), num_cpus=DATA_TASK_CPUS)
        encoded = decoded.map(
            EncoderActor,
            fn_constructor_args=(self.codec_folder,),
            fn_constructor_kwargs={
                "batch_size": self.latents.batch_size,
                "orientations": self.cache.orientations,
            },
            compute=ray.data.ActorPoolStrategy(size=self.latents.actors),
            num_cpus=self.latents.cpus_per_actor,
            num_gpus=self.latents.gpus_per_actor or None,
        )
        written = encoded.map(_ShardWriter(self), num_cpus=DATA_TASK_CPUS)
        for row in written.iter_rows():
            yield SPLITS[int(row["split"])], int(row["chunk"])

    def _chunks(self, split: str) -> range:
        return range(len(self._sizes(split)))

    def _sizes(self, split: str) -> tuple[int, ...]:
        sizes: tuple[int, ...] = getattr(self.splits, split).chunk_sizes
        return sizes

    def _report_path(self, split: str, chunk: int) -> Path:
        return self.cache.shard_path(split, chunk).with_suffix(".json")

    def write_chunk(self, arrays: dict[str, Any]) -> None:
        """Write a shard and, last, its report: records, bad ones, moments of the posterior."""
        split, chunk = SPLITS[int(arrays["split"][0])], int(arrays["chunk"][0])
        about = json.loads(arrays["about"].tobytes())
        std = arrays.get("std")
        if split in self.kept_splits:
            self.cache.write_shard(
                split,
                chunk,
                keys=about["keys"],
                labels_B=arrays["labels"],
                mean_BONZ=arrays["mean"],
                std_BONZ=std,
            )
        moments = LatentMoments.of_width(self.cache.latent_width)
        flat = (-1, self.cache.latent_count, self.cache.latent_width)
        moments.add(
            torch.from_numpy(arrays["mean"].reshape(flat).copy()),
            None if std is None else torch.from_numpy(std.reshape(flat).copy()),
        )
        report = {
            "rows": len(about["keys"]),
            "bad": about["bad"],
            "moments": moments_state(moments),
        }
        path = self._report_path(split, chunk)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".json.partial")
        partial.write_text(json.dumps(report), encoding="utf-8")
        partial.rename(path)

    def _summary(self) -> dict[str, Any]:
        moments = LatentMoments.of_width(self.cache.latent_width)
        rows: dict[str, list[int]] = {}
        bad: list[dict[str, str]] = []
        for split in SPLITS:
            reports = [
                json.loads(self._report_path(split, chunk).read_text(encoding="utf-8"))
                for chunk in self._chunks(split)
            ]
            rows[split] = [report["rows"] for report in reports]
            bad += [{"split": split, **record} for report in reports for record in report["bad"]]
            if split == "train":
                for report in reports:
                    moments.merge(moments_from(report["moments"]))
        return {"rows": rows, "bad_records": bad, "moments": moments_state(moments)}


class _ChunkReader:
    """(split, chunk) → the decoded pixels of the chunk, and what could not be read."""

    def __init__(self, splits: Splits) -> None:
        self.splits = splits

    def __call__(self, row: Row) -> Row:
        split = getattr(self.splits, row["split"])
        signals = split.decode_chunk(int(row["chunk"]))
        good = [signal for signal in signals if not isinstance(signal, BadRecord)]
        bad = [
            {"key": signal.key, "kind": signal.kind, "reason": signal.reason}
            for signal in signals
            if isinstance(signal, BadRecord)
        ]
        about = json.dumps({"keys": [signal.key for signal in good], "bad": bad})
        corpus = split.corpus
        shape = (len(good), corpus.image_size, corpus.image_size, corpus.channels)
        pixels = np.stack([s.pixels for s in good]) if good else np.empty(shape, np.uint8)
        return pack_row(
            {
                "split": np.array([SPLITS.index(row["split"])]),
                "chunk": np.array([row["chunk"]]),
                "about": np.frombuffer(about.encode(), np.uint8),
                "labels": np.array([signal.label for signal in good], np.int64),
                "pixels": pixels,
            }
        )


class _ShardWriter:
    """Writes an encoded chunk; passes on only which one it was."""

    def __init__(self, encoding: EncodingPass) -> None:
        self.encoding = encoding

    def __call__(self, row: Row) -> Row:
        arrays = unpack_row(row)
        self.encoding.write_chunk(arrays)
        return {"split": int(arrays["split"][0]), "chunk": int(arrays["chunk"][0])}


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
