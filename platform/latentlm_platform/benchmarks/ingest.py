"""Reading a corpus as Train workers do: how often its bytes are read, and how fast, beside torch's
DataLoader with as many processes.

Pictures are JPEGs of smooth noise, about as large as photographs of their size. Amplification is
what all workers read in an epoch over the corpus's bytes: of pixels as files count it, of latents
as pages of 4 KiB that the rows of a window touch, a page again in another window or by another
worker.
"""

import contextlib
import hashlib
import io
import itertools
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from latentlm_platform.batches.documents import Composer
from latentlm_platform.batches.lane import Cursor, LaneSource
from latentlm_platform.batches.lanes import LaneOrder, Wish, lanes_of
from latentlm_platform.batches.pixels import PixelGraph, open_pixels
from latentlm_platform.batches.shelves import CachedShelf, StreamedShelf, order_of, wishes
from latentlm_platform.batches.streams import PackedRows, Pictures, Share, read_ahead
from latentlm_platform.benchmarks.harness import Agreement, Outcome, Ratio
from latentlm_platform.benchmarks.host import Load
from latentlm_platform.benchmarks.peers_dataloader import AHEAD, Latents, Tars, tuned_loader
from latentlm_platform.cluster import connected
from latentlm_platform.corpora.corpus_index import open_corpus
from latentlm_platform.corpora.splits import Split
from latentlm_platform.experiment.sections import Cluster, Corpus
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.latents.encoded import IMAGE, LABEL, EncodedChunk
from latentlm_platform.training.worker_group import keep_freed_memory

ROW = "ingest"
MOST_READ = 1.1  # of the corpus's bytes, in an epoch, by all workers together
WORKERS = (1, 2, 4)
PROCESSES, BATCH, LANES, CHUNK, CLASSES = 2, 64, 8, 64, 10
LATENTS, LATENT_WIDTH = 16, 16
PAGE = 4096
FIRST_BATCH_S = {"pixels": 10.0, "latents": 1.0}
PAIRS = 3
READY = 2 * PROCESSES * AHEAD  # batches that may lie ready: in the workers, and collated


class Sizes(NamedTuple):
    """How much is read: pictures of a corpus, pixels a side, records of a timed stretch."""

    images: int
    side: int
    timed: int


QUICK, WHOLE = Sizes(2048, 64, 4096), Sizes(4096, 256, 8192)
READ_CHUNK = 256  # of the corpus whose reading is timed; a stretch is whole windows of all lanes


def outcomes(*, quick: bool) -> Iterator[Outcome]:
    """Every case of the row; Ray is started for it."""
    sizes = QUICK if quick else WHOLE
    os.environ.setdefault("RAY_worker_niceness", "0")  # the peer's processes are not nice either
    with tempfile.TemporaryDirectory(prefix="latentlm-ingest-") as folder:
        root = Path(folder)
        write_pictures(root, sizes)
        with connected(Cluster(), verbose=False):
            tars = _split(root / "tars", sizes)
            splits = {"tars": tars, "Parquet": _split(root / "parquet", sizes)}
            for layout, split in splits.items():
                bytes_of = sum(f.stat().st_size for f in Path(split.index.source).iterdir())
                for workers in WORKERS:
                    read = pixels_read(split, workers=workers)
                    yield _amplification(f"pixels, {layout}", workers, read / bytes_of)
            cache = write_latents(root / "latents", records=4 * sizes.images)
            order = _order(4 * sizes.images)
            stored = sum(f.stat().st_size for f in (cache.folder / "train").rglob("*.arrow"))
            for workers in WORKERS:
                read = latents_read(cache, order, workers=workers)
                yield _amplification("latents", workers, read / stored)
            keep_freed_memory()  # as Train workers do
            timed = _split(root / "tars", sizes, chunk_records=READ_CHUNK)
            yield from _pixels(root, timed, sizes)
            yield _latents(root, cache, order, sizes)


def pixels_read(split: Split, *, workers: int) -> int:
    """Bytes that all workers read in an epoch, by the function that their readers run."""
    order, graph = order_of(split, seed=0), PixelGraph(split, readers=1)
    return sum(
        int(graph.read(Wish(lane, 0, *piece))["bytes_read"][0])
        for rank in range(workers)
        for lane in lanes_of(rank, workers=workers, lanes=LANES)
        for piece in _epoch(order, lane)
    )


def latents_read(cache: LatentCache, order: LaneOrder, *, workers: int) -> int:
    """Bytes of the pages that all workers touch in an epoch, each once a window."""
    pages = 0
    for rank in range(workers):
        for lane in lanes_of(rank, workers=workers, lanes=LANES):
            for window in itertools.count():
                pieces = order.pieces(lane, 0, window)
                if not pieces:
                    break
                touched: set[int] = set()
                for piece in pieces:
                    chunk = cache.read_chunk("train", piece.chunk)
                    for array in (chunk.ids, chunk.part_starts, chunk.kinds, chunk.lengths):
                        touched.update(_pages(array))
                    for row in range(piece.first, piece.last):
                        for part in chunk.parts(row):
                            values = part.words if part.mean_NZ is None else part.mean_NZ
                            touched.update(_pages(values))
                pages += len(touched)
    return pages * PAGE


def _pages(array: Any) -> range:
    start = array.__array_interface__["data"][0]
    return range(start // PAGE, (start + max(array.nbytes, 1) - 1) // PAGE + 1)


def _epoch(order: LaneOrder, lane: int) -> Iterator[Any]:
    for window in itertools.count():
        pieces = order.pieces(lane, 0, window)
        if not pieces:
            return
        yield from pieces


def _amplification(what: str, workers: int, value: float) -> Outcome:
    ok = value <= MOST_READ
    return Outcome(
        row=ROW,
        case=f"read amplification, {what}, {workers} workers",
        status="ok" if ok else "slower",
        reason=f"{value:.3f} of the corpus's bytes, at most {MOST_READ:g}",
        sizes={"read_amplification": value, "workers": workers},
        bar=MOST_READ,
    )


def _pixels(root: Path, split: Split, sizes: Sizes) -> Iterator[Outcome]:
    """Pictures from tars: records a second, and seconds to the first batch."""
    loader = tuned_loader(
        Tars(root / "tars", image_size=sizes.side), batch_size=BATCH, processes=PROCESSES
    )
    peer = iter(loader)
    next(peer)
    waits: list[float] = []

    def ours() -> float:
        with contextlib.closing(read_ahead(pictures(split), steps=10**9)) as stream:
            started = time.perf_counter()
            next(stream)
            waits.append(time.perf_counter() - started)
            return _seconds(lambda: next(stream), sizes.timed // BATCH)

    yield _rate(
        f"pictures a second, tars, {sizes.side} pixels, {PROCESSES} readers",
        ours,
        lambda: _drained(peer, sizes.timed // BATCH),
        gate=Agreement(float(_fingerprint_ours(split) != _fingerprint_peer(root, sizes)), 0.0),
        sizes=sizes._asdict() | {"batch": BATCH, "processes": PROCESSES},
        records=sizes.timed,
    )
    yield _first_batch("pixels", statistics.median(waits[1:]))


def _latents(root: Path, cache: LatentCache, order: LaneOrder, sizes: Sizes) -> Outcome:
    """Rows from the latent cache, ready for the model, beside latents from an array."""
    np.save(root / "latents.npy", _latent_array(order.records))
    data = Latents(root / "latents.npy")
    loader = tuned_loader(data, batch_size=BATCH, processes=PROCESSES, shuffle=True)
    peer = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    next(peer)
    steps = 8 * sizes.timed // BATCH
    with contextlib.closing(read_ahead(packed(cache, order), steps=10**9)) as stream:
        started = time.perf_counter()
        next(stream)
        wait = time.perf_counter() - started
        outcome = _rate(
            "latents a second from the cache",
            lambda: _seconds(lambda: next(stream), steps),
            lambda: _drained(peer, steps),
            gate=Agreement(_error_of(cache, order), 0.0),
            sizes={"latents": LATENTS, "width": LATENT_WIDTH, "first_batch_s": wait},
            records=steps * BATCH,
        )
    return outcome


def _rate(
    case: str,
    ours: Callable[[], float],
    peer: Callable[[], float],
    *,
    gate: Agreement,
    sizes: dict[str, Any],
    records: int,
) -> Outcome:
    """Our rate over the peer's, by turns; the first turn of each warms up."""
    if not gate.holds:
        return Outcome(row=ROW, case=case, status="wrong", reason="other records", agreement=gate)
    ours(), peer()
    load = Load()
    pairs = [(ours(), peer()) for _ in range(PAIRS)]
    shares = load.shares()
    ratios = [theirs / own for own, theirs in pairs]
    ratio = Ratio(statistics.median(ratios), min(ratios), max(ratios))
    mine, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    slow = ratio.median < 1.0
    rates = {"records_per_s": records / mine, "records_per_s_of_peer": records / other}
    return Outcome(
        row=ROW,
        case=case,
        status="slower" if slow else "ok",
        reason=f"{ratio.median:.2f} is below 1" if slow else "",
        sizes=sizes | rates,
        bar=1.0,
        agreement=gate,
        ratio=ratio,
        ours_ms=1e3 * mine,
        peer_ms=1e3 * other,
        pairs=PAIRS,
        load=shares._asdict(),
        noisy=shares.noisy,
    )


def _first_batch(what: str, seconds: float) -> Outcome:
    most = FIRST_BATCH_S[what]
    return Outcome(
        row=ROW,
        case=f"seconds to the first batch, {what}",
        status="ok" if seconds <= most else "slower",
        reason=f"{seconds:.2f} s, at most {most:g}",
        sizes={"seconds_to_first_row": seconds},
        bar=most,
    )


def _drained(peer: Iterator[Any], batches: int) -> float:
    """Seconds for so many batches, none of which lay ready."""
    for _ in range(READY):
        next(peer)
    return _seconds(lambda: next(peer), batches)


def _error_of(cache: LatentCache, order: LaneOrder) -> float:
    """How far latents of a batch are from the array that the peer reads."""
    (raw,) = next(iter(packed(cache, order))).micro_batches
    wanted = _latent_array(order.records)[raw.document_ids_N]
    return float(np.abs(raw.mean_SLZ - wanted).max())


def _seconds(work: Callable[[], object], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - started


def pictures(split: Split) -> Pictures:
    """What one Train worker of one reads of a split."""
    order = order_of(split, seed=0)
    cursors = {lane: Cursor.start(sources=1) for lane in range(LANES)}
    leg = order.chunks_for(10**6, lanes=LANES)
    graph = PixelGraph(split, readers=PROCESSES)
    shelf = StreamedShelf(wishes(order, cursors, number=0), graph, open_pixels, leg=leg)
    source = LaneSource(name=ROW, order=order, shelf=shelf, seed=0)
    return Pictures(source, Share(BATCH, LANES, workers=1), cursors)


def packed(cache: LatentCache, order: LaneOrder) -> PackedRows:
    """Rows of one class image each, from the cache."""
    cursors = {lane: Cursor.start(sources=1) for lane in range(LANES)}
    source = LaneSource(name=ROW, order=order, shelf=CachedShelf(cache), seed=0)
    composer, share = Composer(LATENTS + 1, vocabulary=None), Share(BATCH, LANES, workers=1)
    return PackedRows([source], composer, share, LATENT_WIDTH, cursors)


def _fingerprint_ours(split: Split) -> str:
    records = (r for chunk in range(len(split.chunk_sizes)) for r in split.decode_chunk(chunk))
    return _together(record.pixels for record in records)  # type: ignore[union-attr]


def _fingerprint_peer(root: Path, sizes: Sizes) -> str:
    once = Tars(root / "tars", image_size=sizes.side, once=True)
    return _together(pixels.numpy() for pixels, _ in once)


def _together(pictures: Iterator[np.ndarray]) -> str:
    """A hash of pictures in any order."""
    digests = sorted(hashlib.sha256(p.tobytes()).digest() for p in pictures)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _split(folder: Path, sizes: Sizes, *, chunk_records: int = CHUNK) -> Split:
    corpus = Corpus(
        source=str(folder),
        classes=CLASSES,
        image_size=sizes.side,
        chunk_records=chunk_records,
        shuffle_window_chunks=LANES,
        lanes=LANES,
    )
    return Split(open_corpus(corpus.source, corpus=corpus), corpus, "all", 0)


def _order(records: int) -> LaneOrder:
    sizes = np.full(records // CHUNK, CHUNK, np.int64)
    return LaneOrder(sizes, seed=0, lanes=LANES, window_chunks=16)


def write_pictures(root: Path, sizes: Sizes) -> None:
    """The same JPEGs as tars of 128 and as Parquet with row groups of a chunk."""
    (root / "tars").mkdir(parents=True)
    (root / "parquet").mkdir()
    random = np.random.default_rng(0)
    rows = [(_jpeg(random, sizes.side), n % CLASSES) for n in range(sizes.images)]
    for start in range(0, len(rows), 128):
        with tarfile.open(root / "tars" / f"{start // 128:04d}.tar", "w") as tar:
            for number, (data, label) in enumerate(rows[start : start + 128], start=start):
                for name, content in (("jpg", data), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{number:06d}.{name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    columns = zip(*rows, strict=True)
    table = pa.table(dict(zip(("image", "label"), map(pa.array, columns), strict=True)))
    pq.write_table(table, root / "parquet" / "0.parquet", row_group_size=CHUNK)


def _jpeg(random: np.random.Generator, side: int) -> bytes:
    coarse = random.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((side * 5 // 4, side), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _latent_array(records: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.standard_normal((records, LATENTS, LATENT_WIDTH), np.float32)


def write_latents(folder: Path, *, records: int) -> LatentCache:
    """A latent cache of class images."""
    cache, latents = LatentCache(folder, LATENT_WIDTH), _latent_array(records)
    for chunk in range(records // CHUNK):
        rows = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK)
        encoded = EncodedChunk(
            ids=rows,
            part_starts=np.arange(CHUNK + 1) * 2,
            kinds=np.tile([LABEL, IMAGE], CHUNK).astype(np.uint8),
            scored=np.tile([False, True], CHUNK),
            lengths=np.tile([1, LATENTS], CHUNK).astype(np.int32),
            words=(rows % CLASSES).astype(np.int32),
            mean=(latents[rows].reshape(-1, LATENT_WIDTH),),
        )
        cache.write_chunk("train", chunk, encoded, keys=[str(row) for row in rows])
    return cache
