"""The latent cache: encoded records on disk, addressed by what they were computed from.

Key: corpus manifest, preprocessing, encoder parameters; never statistics, never noise, which is
drawn anew each time a batch is used. One uncompressed Arrow file a chunk and split, a row a record,
any number of signals and latents in it; memory-mapped, so that any row is read without its
neighbours. A shard is renamed into place, its report after it: an interrupted encoding goes on
where it stopped.
"""

import functools
import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from latentlm_platform.errors import UserError
from latentlm_platform.latents.encoded import SIDES, EncodedChunk

SUMMARY = "cache.json"
FORMAT = 2  # of the shards
OPEN_SHARDS = 256


@dataclass(frozen=True)
class LatentCache:
    """Shards of encoded chunks in a folder; latents of `latent_width` numbers."""

    folder: Path
    latent_width: int

    def shard_path(self, split: str, chunk: int) -> Path:
        return self.folder / split / f"{chunk // 1000:04d}" / f"{chunk:07d}.arrow"

    def report_path(self, split: str, chunk: int) -> Path:
        return self.shard_path(split, chunk).with_suffix(".json")

    def write_chunk(
        self, split: str, chunk: int, encoded: EncodedChunk, *, keys: Sequence[str]
    ) -> None:
        """Write a shard; it appears whole or not at all."""
        part_starts = encoded.part_starts
        columns = {
            "key": pa.array(keys, pa.string()),
            "id": pa.array(encoded.ids),
            "kinds": _lists(part_starts, encoded.kinds),
            "scored": _lists(part_starts, encoded.scored.astype(np.uint8)),
            "lengths": _lists(part_starts, encoded.lengths),
            "words": _lists(encoded.word_rows(), encoded.words),
        }
        rows = encoded.latent_rows() * self.latent_width
        for name in ("mean", "std"):
            for side, values in zip(SIDES, getattr(encoded, name), strict=False):
                columns[f"{name}{side}"] = _lists(rows, values.reshape(-1))
        path = self.shard_path(split, chunk)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{secrets.token_hex(4)}.partial")
        table = pa.table(columns)
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        partial.rename(path)

    def read_chunk(self, split: str, chunk: int) -> EncodedChunk:
        """A chunk by memory map: what is read of it later is what is looked at."""
        return _open_shard(self.shard_path(split, chunk), self.latent_width)

    def write_report(self, split: str, chunk: int, report: dict[str, Any]) -> None:
        """Say that a chunk has been encoded, and what was found: records, bad ones, moments."""
        path = self.report_path(split, chunk)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(report))

    def read_report(self, split: str, chunk: int) -> dict[str, Any]:
        """What `write_report` wrote."""
        report: dict[str, Any] = json.loads(
            self.report_path(split, chunk).read_text(encoding="utf-8")
        )
        return report

    def has_chunk(self, split: str, chunk: int) -> bool:
        """Whether a chunk has been encoded."""
        return self.report_path(split, chunk).exists()

    def note_bad(self, chunk: int, state: dict[str, Any]) -> None:
        """Write down what could not be used of a chunk of the training split that is not kept."""
        path = self.folder / "bad" / f"{chunk:07d}.json"
        if state["counts"] and not path.exists() and not self.has_chunk("train", chunk):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, json.dumps(state))

    def bad_states(self) -> Iterator[dict[str, Any]]:
        """What could not be used of all chunks that were read so far, each once."""
        for path in sorted((self.folder / "bad").glob("*.json")):
            yield json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(self.folder.glob("*/*/*.json")):
            yield json.loads(path.read_text(encoding="utf-8"))["bad"]

    def commit(self, summary: dict[str, Any]) -> None:
        """Mark the pass over the corpus complete. `summary`: moments, bad records, counts."""
        _write(self.folder / SUMMARY, json.dumps({"format": FORMAT, **summary}, indent=1))

    def summary(self) -> dict[str, Any] | None:
        """What `commit` wrote, or None while the pass is incomplete."""
        path = self.folder / SUMMARY
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def old_caches(artifacts: Path) -> int:
    """How many caches among these artifacts an earlier version wrote, which nobody reads now."""
    found = (json.loads(p.read_text(encoding="utf-8")) for p in artifacts.glob(f"*/{SUMMARY}"))
    return sum(summary.get("format") != FORMAT for summary in found)


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _open_shard(path: Path, latent_width: int) -> EncodedChunk:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        return _chunk_of(table, latent_width)
    except (OSError, pa.lib.ArrowException, LookupError, ValueError, AttributeError) as error:
        raise UserError(
            f"the latent cache shard {path} cannot be read ({error});"
            f" remove the folder {path.parents[2]} and run again to encode it anew",
            exit_code=1,
        ) from error


def _chunk_of(table: Any, latent_width: int) -> EncodedChunk:
    """The chunk that a table holds, as views of it; an error of Python or Arrow if it is none."""
    flat = {name: _flat(table, name) for name in table.column_names if name not in ("key", "id")}
    signals = {
        name: tuple(
            flat[f"{name}{side}"].reshape(-1, latent_width)
            for side in SIDES
            if f"{name}{side}" in flat
        )
        for name in ("mean", "std")
    }
    chunk = EncodedChunk(
        ids=table["id"].chunk(0).to_numpy(),
        part_starts=table["kinds"].chunk(0).offsets.to_numpy(),
        kinds=flat["kinds"],
        scored=flat["scored"].view(np.bool_),
        lengths=flat["lengths"],
        words=flat["words"],
        **signals,
    )
    chunk.check()
    return chunk


def _lists(starts: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> Any:
    return pa.LargeListArray.from_arrays(pa.array(starts, pa.int64()), pa.array(values))


def _flat(table: Any, name: str) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = table[name].chunk(0).values.to_numpy()
    return values


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(f".{secrets.token_hex(4)}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)
