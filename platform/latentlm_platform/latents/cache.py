"""The latent cache: posterior parameters on disk, addressed by what they were computed from.

Key: corpus manifest, preprocessing, encoder parameters; never statistics, never noise, which is
drawn anew each time a batch is used. One uncompressed Arrow file a chunk and split, memory-mapped,
so that any row is read without its neighbours. A cache is complete when `cache.json` exists; shards
are renamed into place, so that an interrupted encoding goes on where it stopped.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentlm_platform.batches.ordering import IntArray, Rows
from latentlm_platform.errors import UserError

SUMMARY = "cache.json"
FloatArray = npt.NDArray[np.float32]


class Posteriors(NamedTuple):
    """Posterior parameters in order: [n, N, Z] means (and stds, for diagonal-Gaussian codecs)."""

    mean_BNZ: FloatArray
    std_BNZ: FloatArray | None
    labels_B: IntArray


@dataclass(frozen=True)
class LatentCache:
    """Shards of posteriors in a folder; `orientations` is 2 where images are mirrored too."""

    folder: Path
    latent_count: int
    latent_width: int
    orientations: int
    with_std: bool

    def shard_path(self, split: str, chunk: int) -> Path:
        return self.folder / split / f"{chunk:06d}.arrow"

    def write_shard(
        self,
        split: str,
        chunk: int,
        *,
        keys: Sequence[str],
        labels_B: IntArray,
        mean_BONZ: FloatArray,
        std_BONZ: FloatArray | None,
    ) -> None:
        """Write one chunk's posteriors; the file appears whole or not at all."""
        columns = {"key": pa.array(keys, pa.string()), "label": pa.array(labels_B)}
        for name, values in (("mean", mean_BONZ), ("std", std_BONZ)):
            if values is None:
                continue
            for side in range(self.orientations):
                flat = pa.array(np.ascontiguousarray(values[:, side]).reshape(-1))
                width = self.latent_count * self.latent_width
                columns[f"{name}_{side}"] = pa.FixedSizeListArray.from_arrays(flat, width)
        path = self.shard_path(split, chunk)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        table = pa.table(columns)
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        partial.rename(path)

    def read_rows(self, split: str, rows: Rows, *, mirrored_B: npt.NDArray[np.bool_]) -> Posteriors:
        """The posteriors of these rows, in order, of the image or of its mirror image."""
        count = len(rows.ids)
        shape = (count, self.latent_count, self.latent_width)
        mean, labels = np.empty(shape, np.float32), np.empty(count, np.int64)
        std = np.empty(shape, np.float32) if self.with_std else None
        for chunk in np.unique(rows.chunks).tolist():
            table = self._open_shard(split, chunk)
            for side in (0, 1) if self.orientations == 2 else (0,):
                places = np.flatnonzero((rows.chunks == chunk) & (mirrored_B == bool(side)))
                if not len(places):
                    continue
                taken = table.take(pa.array(rows.rows[places]))
                labels[places] = taken["label"].to_numpy()
                mean[places] = self._column(taken, f"mean_{side}")
                if std is not None:
                    std[places] = self._column(taken, f"std_{side}")
        return Posteriors(mean, std, labels)

    def _open_shard(self, split: str, chunk: int) -> pa.Table:
        path = self.shard_path(split, chunk)
        try:
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                f"the latent cache shard {path} cannot be read ({error});"
                f" remove the folder {self.folder} and run again to encode it anew"
            ) from error

    def _column(self, table: pa.Table, name: str) -> FloatArray:
        flat = table[name].combine_chunks().flatten().to_numpy()
        values: FloatArray = flat.reshape(len(table), self.latent_count, self.latent_width)
        return values

    def commit(self, summary: dict[str, Any]) -> None:
        """Mark the cache complete. `summary`: shard sizes by split, moments, bad records."""
        partial = self.folder / "cache.json.partial"
        partial.write_text(json.dumps(summary, indent=1), encoding="utf-8")
        partial.rename(self.folder / SUMMARY)

    def summary(self) -> dict[str, Any] | None:
        """What `commit` wrote, or None while the cache is incomplete."""
        path = self.folder / SUMMARY
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
