"""Cached, streamed or written through: the same documents to the last bit, from a real Ray."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from latentlm.catalogue import build_codec
from latentlm.load import save_codec
from latentlm.settings import FixedVariance
from latentlm_platform.batches.lane import Cursor
from latentlm_platform.batches.lanes import lanes_of
from latentlm_platform.batches.streams import PackedRows, Share
from latentlm_platform.corpora.bad_records import BadTally
from latentlm_platform.corpora.splits import open_splits
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.latents.decoding import ChunkDecoder
from latentlm_platform.latents.drawing import drawing_codec
from latentlm_platform.latents.encoding import SPLITS, EncodingPass, moments_from
from latentlm_platform.training.inputs import ModelInputs
from making_corpora import write_class_folders

pytestmark = pytest.mark.ray
LANES, BATCH, WIDTH, BAD = 4, 8, 4, 5
LAW = FixedVariance(sigma=0.5)
STEPS = 25  # of 8 among 80 to 100 records: more than two epochs


def tiny(source: Path, mode: str) -> Experiment:
    sides = {"width": 32, "depth": 1, "heads": 2}
    optimizer = {"learning_rate": 1e-3}
    return Experiment.model_validate(
        {
            "name": "tiny",
            "corpus": {
                "source": str(source),
                "classes": 4,
                "image_size": 16,
                "channels": 1,
                "flip": True,
                "held_out_fraction": 0.2,
                "chunk_records": 4,
                "shuffle_window_chunks": 2 * LANES,
                "lanes": LANES,
            },
            "codec": {
                "patch_size": 4,
                "latent_width": WIDTH,
                "encoder": sides,
                "decoder": sides,
                "variance": {"kind": "half_normal", "c_sigma": 1e-3},
                "training": {"steps": 1, "batch_size": 8, "optimizer": optimizer},
            },
            "latents": {"mode": mode, "batch_size": 3, "cpus_per_actor": 0.5},
            "model": {
                "width": 32, "depth": 1, "heads": 2, "ffn_width": 48,
                "head": {"depth": 1, "ffn_width": 48},
            },
            "train": {"steps": STEPS, "batch_size": BATCH, "optimizer": optimizer},
        },
        strict=False,
    )  # fmt: skip


@dataclass
class Workers:
    """Workers side by side in this process, over inputs in one of the modes."""

    inputs: ModelInputs
    count: int = 1

    def __post_init__(self) -> None:
        self.cursors = dict.fromkeys(range(LANES), self.inputs.start())

    @contextmanager
    def streaming(self) -> Iterator[Iterator[list[Any]]]:
        """Steps from here on: what each row holds, as `shown`, sorted."""
        sources, streams = [], []
        for rank in range(self.count):
            own = lanes_of(rank, workers=self.count, lanes=LANES)
            cursors = {lane: self.cursors[lane] for lane in own}
            sources += self.inputs.sources(cursors, rows=STEPS * BATCH // LANES)
            share = Share(BATCH, LANES, self.count)
            composer = self.inputs.composer()
            rows = PackedRows(sources[-1:], composer, share, WIDTH, cursors)
            streams.append(iter(rows))
        try:
            yield self._steps(streams)
        finally:
            for source in sources:
                source.shelf.close()

    def _steps(self, streams: list[Any]) -> Iterator[list[Any]]:
        while True:
            parts = [next(stream) for stream in streams]
            states = {k: v for part in parts for k, v in part.cursors.items()}
            held = json.loads(json.dumps(states))
            self.cursors = {int(lane): Cursor.of(state) for lane, state in held.items()}
            yield sorted(row for part in parts for raw in part.micro_batches for row in shown(raw))

    @property
    def epochs(self) -> set[int]:
        return {cursor.places[0].epoch for cursor in self.cursors.values()}


def shown(raw: Any) -> Iterator[tuple[int, int, int, bytes]]:
    """(record, epoch, class, means) of each row, which is one document."""
    for row, id_ in enumerate(raw.document_ids_N.tolist()):
        epoch, label = int(raw.epochs_N[row]), int(raw.ids_BT[row, 0])
        yield id_, epoch, label, raw.mean_SLZ[row].tobytes()


class Prepared(NamedTuple):
    """A corpus with some bad images, its codec, a full cache, and what comes from it."""

    source: Path
    inputs: ModelInputs
    codec: Path
    rows: list[list[Any]]
    bad: set[int]


def new_inputs(prepared: Prepared, mode: str, folder: Path) -> ModelInputs:
    """Inputs in a mode, with an empty cache of their own."""
    experiment = tiny(prepared.source, mode)
    return replace(prepared.inputs, experiment=experiment, cache=LatentCache(folder, WIDTH))


@pytest.fixture(scope="module")
def prepared(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("modes")
    source = write_class_folders(root / "corpus", classes=4, images_a_class=25)
    experiment = tiny(source, "cached")
    for path in sorted(source.rglob("*.png"))[7::19]:
        path.write_bytes(b"torn")
    splits = open_splits(experiment.corpus, seed=0)
    torch.manual_seed(0)
    codec: Any = build_codec(experiment.codec_settings())
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    codec.set_statistics(mean=0.0, std=1.0)
    save_codec(root / "codec", codec=codec)
    cache = LatentCache(root / "cache", WIDTH)
    summary = encode(experiment, splits, root / "codec", cache)
    drawing = root / "drawing"
    moments = moments_from(summary["moments"])
    drawing_codec(root / "codec", variance=LAW, moments=moments, target=drawing)
    inputs = ModelInputs(experiment, splits, cache, drawing)
    with Workers(inputs).streaming() as steps:
        rows = [next(steps) for _ in range(STEPS)]
    train = splits.train
    sizes = enumerate(train.chunk_sizes.tolist())
    encoded = {chunk: cache.read_chunk("train", chunk) for chunk, size in sizes if size}
    bad = {int(i) for e in encoded.values() for n, i in enumerate(e.ids) if not e.usable(n)}
    assert BadTally.from_state(summary["bad_records"]).total >= len(bad) >= BAD - 2
    return Prepared(source, inputs, root / "codec", rows, bad)


def encode(experiment: Experiment, splits: Any, codec: Path, cache: LatentCache) -> Any:
    """Fill a cache beforehand."""
    split_chunks = {s: np.flatnonzero(getattr(splits, s).chunk_sizes) for s in SPLITS}
    whole = EncodingPass(
        {s: ChunkDecoder(getattr(splits, s), s) for s in SPLITS},
        {s: tuple(found.tolist()) for s, found in split_chunks.items()},
        codec_folder=codec,
        cache=cache,
        latents=experiment.latents,
        orientations=2,
    )
    done: list[int] = []
    summary = whole.run(on_progress=done.append)
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, whole.records)
    assert whole.run(on_progress=done.append) == summary  # nothing is left to do
    return summary


def test_what_the_cache_gives(prepared: Prepared) -> None:
    """The first two epochs hold every good record once, some of them mirrored in one of both."""
    splits = prepared.inputs.splits
    sizes = splits.train.chunk_sizes
    whole = {int(i) for chunk in range(len(sizes)) for i in splits.train.ids_of(chunk)}
    seen = [(id_, epoch, means) for step in prepared.rows for id_, epoch, _, means in step]
    for epoch in (0, 1):
        ids = [id_ for id_, of, _ in seen if of == epoch]
        assert sorted(ids) == sorted(whole - prepared.bad)
    sides: dict[int, set[bytes]] = {}
    for id_, _, means in seen:
        sides.setdefault(id_, set()).add(means)
    assert max(len(found) for found in sides.values()) == 2
    assert len(prepared.bad) > 2


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mode", ["streamed", "write_through"])
def test_all_modes_give_the_same(
    prepared: Prepared, tmp_path: Path, mode: str, workers: int
) -> None:
    inputs = new_inputs(prepared, mode, tmp_path)
    running = Workers(inputs, workers)
    with running.streaming() as steps:
        for wanted in prepared.rows:
            assert next(steps) == wanted
    assert min(running.epochs) >= 2
    tally = BadTally()
    for state in inputs.cache.bad_states():
        tally.merge(BadTally.from_state(state))
    assert tally.total == len(prepared.bad)
    if mode == "write_through":
        nobody = replace(inputs, codec_folder=tmp_path / "no codec")
        again = Workers(nobody, 2)
        with again.streaming() as steps:
            for wanted in prepared.rows:
                assert next(steps) == wanted  # all of it is in the cache: nothing is encoded
    else:
        assert not list(tmp_path.glob("train/*/*.arrow"))


def test_write_through_goes_on_where_it_was_stopped(prepared: Prepared, tmp_path: Path) -> None:
    """After two steps of one worker, killed between a shard and its report, two go on."""
    inputs = new_inputs(prepared, "write_through", tmp_path)
    stopped = Workers(inputs)
    with stopped.streaming() as steps:
        assert [next(steps), next(steps)] == prepared.rows[:2]
    shards = sorted(tmp_path.glob("train/*/*.arrow"))
    assert shards
    shards[0].with_suffix(".json").unlink()
    shards[0].with_suffix(".1.partial").write_bytes(b"half a shard")
    written = {path: path.stat().st_mtime_ns for path in shards[1:]}
    resumed = Workers(inputs, 2)
    resumed.cursors = stopped.cursors
    with resumed.streaming() as steps:
        for wanted in prepared.rows[2:]:
            assert next(steps) == wanted
    kept = [path for path, time_ns in written.items() if path.stat().st_mtime_ns == time_ns]
    assert len(kept) >= len(written) - 2  # those that both workers take a piece of may be twice
    held = np.flatnonzero(inputs.splits.train.chunk_sizes).tolist()
    assert all(inputs.cache.has_chunk("train", chunk) for chunk in held)
