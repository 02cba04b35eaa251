"""A corpus of ten million records: its first batch comes at once; nothing grows by records."""

import itertools
import time
from pathlib import Path

import psutil
import pytest

from latentlm_platform.batches.lane import Cursor, LaneSource
from latentlm_platform.batches.lanes import lanes_of
from latentlm_platform.batches.pixels import PixelGraph, open_pixels
from latentlm_platform.batches.shelves import StreamedShelf, order_of, wishes
from latentlm_platform.batches.streams import Pictures, Share, read_ahead
from latentlm_platform.corpora.chunk_index import load_index
from latentlm_platform.corpora.corpus_index import CorpusIndex
from latentlm_platform.corpora.records import class_image_parts
from latentlm_platform.corpora.splits import Split
from latentlm_platform.experiment.sections import Corpus
from making_large_index import CLASSES, FRACTION, write_its_file, write_large_index

FIRST_BATCH_S, GROWTH_BYTES = 10.0, 200 * 2**20
SIZE, STEPS = 8, 1_000_000


@pytest.mark.ray
def test_the_first_batch_of_ten_million_records(local_ray: None, tmp_path: Path) -> None:
    source = tmp_path / "corpus"
    write_its_file(source, image_size=SIZE)
    write_large_index(tmp_path / "index", one_file=True)
    corpus = Corpus(
        source=str(source),
        classes=CLASSES,
        image_size=SIZE,
        channels=1,
        held_out_fraction=FRACTION,
    )
    process = psutil.Process()
    warm = _batches(_split(tmp_path / "index", corpus))
    next(warm)  # Ray Data itself is imported by now
    warm.close()
    before, started = process.memory_info().rss, time.monotonic()
    batches = _batches(_split(tmp_path / "index", corpus))
    first = next(batches)
    seconds = time.monotonic() - started
    assert first.pixels.shape == (64, SIZE, SIZE, 1)
    assert len(set(first.ids.tolist())) == 64
    assert first.ids.max() > 10**6  # from all over the corpus
    assert seconds < FIRST_BATCH_S
    for _ in itertools.islice(batches, 200):
        pass
    growth = process.memory_info().rss - before
    assert growth < GROWTH_BYTES
    batches.close()
    print({"seconds": round(seconds, 2), "growth_mib": growth >> 20})


def _split(folder: Path, corpus: Corpus) -> Split:
    stored = load_index(folder)
    assert stored is not None
    parts = class_image_parts(corpus)
    index = CorpusIndex(
        corpus.source, "parquet", "d", folder, stored.records, *stored.naming, parts=parts
    )
    return Split(index, corpus, "train", 0)


def _batches(split: Split):  # type: ignore[no-untyped-def]
    """What the first of two workers reads of a training of a million steps."""
    order = order_of(split, seed=0)
    own = {lane: Cursor.start(sources=1) for lane in lanes_of(0, workers=2, lanes=order.lanes)}
    share = Share(128, order.lanes, workers=2)
    leg = order.chunks_for(STEPS * share.rows_a_lane, lanes=len(own))
    wished = wishes(order, own, number=0)
    shelf = StreamedShelf(wished, PixelGraph(split, readers=2), open_pixels, leg=leg)
    source = LaneSource(name="x", order=order, shelf=shelf, seed=0)
    return read_ahead(Pictures(source, share, own), steps=STEPS)
