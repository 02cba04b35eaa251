"""Look at a corpus before training on it: class counts, bad records, a labelled sample of images.

  latentlm preview experiments/quickstart.yaml
  latentlm preview mine.yaml --set corpus.source=/data/birds --set corpus.classes=12 --out birds.png

Images are shown as the codec will see them: turned, cropped, resized. Counts are of a few chunks
spread over the corpus (`--chunks 0`: all of it). A named corpus is fetched first where missing.
"""

import argparse
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlm_platform.commands import Result
from latentlm_platform.commands.validate import add_overrides
from latentlm_platform.errors import UserError

if TYPE_CHECKING:  # heavy to import; needed here for annotations alone
    from latentlm_platform.corpora.records import BadRecord, Decoded
    from latentlm_platform.corpora.splits import Split

SAMPLE_CHUNKS = 8
GRID_CLASSES = 20
GRID_PER_CLASS = 6
TILE_WIDTH = 96
CAPTION_LETTERS = 16
BAD_EXAMPLES = 10


def configure(parser: argparse.ArgumentParser) -> None:
    """The experiment file, overrides, how much is read, and where the picture goes."""
    parser.add_argument("file", metavar="FILE", help="the experiment's YAML")
    add_overrides(parser)
    parser.add_argument(
        "--chunks", type=int, default=SAMPLE_CHUNKS, help="chunks to read; 0 reads all (default 8)"
    )
    parser.add_argument(
        "--out", metavar="PNG", help="the picture (default: $LATENTLM_HOME/previews/NAME.png)"
    )


def execute(arguments: argparse.Namespace) -> Result:
    """Report: records, sampled records, class counts, bad records by kind, the picture's path."""
    from latentlm_platform.corpora.corpus_index import open_corpus
    from latentlm_platform.corpora.named import ensure
    from latentlm_platform.corpora.splits import Split
    from latentlm_platform.experiment.files import load_experiment
    from latentlm_platform.home import home

    experiment = load_experiment(arguments.file, overrides=arguments.overrides)
    corpus = experiment.corpus
    if corpus.kind != "class_images":
        raise UserError(
            f"{arguments.file}: corpus.kind = {corpus.kind} cannot be shown yet; preview shows"
            " class_images"
        )
    index = open_corpus(ensure(corpus.source), corpus=corpus)
    picture = Path(arguments.out or home() / "previews" / f"{experiment.name}.png")
    started = time.monotonic()
    found = _Sample(Split(index, corpus, "all", seed=0), chunks=arguments.chunks)
    seconds = time.monotonic() - started
    _write_picture(picture, found.shown)
    report: dict[str, Any] = {
        "source": index.source,
        "layout": index.layout,
        "digest": index.digest,
        "records": index.record_count,
        "chunks": len(index.chunk_sizes),
        "sampled_chunks": found.chunks,
        "sampled_records": found.records,
        "images_per_second": found.records / max(seconds, 1e-9),
        "class_counts": {n: found.counts[i] for i, n in enumerate(index.class_names)},
        "bad_records": dict(found.bad_counts),
        "bad_examples": [asdict(bad) for bad in found.bad],
        "picture": str(picture.absolute()) if found.shown else None,
    }
    _print(report)
    return Result(report)


class _Sample:
    """Chunks spread evenly over the corpus, decoded once: counts, and a few images a class."""

    def __init__(self, split: "Split", *, chunks: int) -> None:
        self.counts: Counter[int] = Counter()
        self.bad_counts: Counter[str] = Counter()
        self.bad: list[BadRecord] = []
        self.images: dict[int, list[Decoded]] = {}
        self.class_names = split.index.class_names
        total = len(split.chunk_sizes)
        self.chunks = min(total, chunks) if chunks > 0 else total
        for part in range(self.chunks):
            self._read(split, chunk=part * total // self.chunks)

    @property
    def records(self) -> int:
        return self.counts.total() + self.bad_counts.total()

    @property
    def shown(self) -> list[tuple[str, "Decoded"]]:
        """(class name, image) of the picture, class by class."""
        classes = sorted(self.images)[:GRID_CLASSES]
        return [(self.class_names[label], i) for label in classes for i in self.images[label]]

    def _read(self, split: "Split", *, chunk: int) -> None:
        from latentlm_platform.corpora.records import BadRecord

        for signal in split.decode_chunk(chunk):
            if isinstance(signal, BadRecord):
                self.bad_counts[signal.kind] += 1
                self.bad.extend([signal] if len(self.bad) < BAD_EXAMPLES else [])
                continue
            self.counts[signal.label] += 1
            kept = self.images.setdefault(signal.label, [])
            kept.extend([signal] if len(kept) < GRID_PER_CLASS else [])


def _write_picture(path: Path, shown: list[tuple[str, "Decoded"]]) -> None:
    import numpy as np

    from latentlm.media import caption_image, encode_png, tile_images
    from latentlm_platform.errors import UserError

    if not shown:
        return
    tiles = [
        caption_image(image.pixels, name[:CAPTION_LETTERS], width=TILE_WIDTH)
        for name, image in shown
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(tile_images(np.stack(tiles), GRID_PER_CLASS * 2)))
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror}") from None


def _print(report: dict[str, Any]) -> None:
    whole = report["sampled_chunks"] == report["chunks"]
    part = "all" if whole else f"{report['sampled_chunks']} of {report['chunks']}"
    print(
        f"{report['source']} ({report['layout']}): {report['records']:,} records;"
        f" {report['sampled_records']:,} read in {part} chunks,"
        f" {report['images_per_second']:,.0f} images/s"
    )
    for name, count in report["class_counts"].items():
        print(f"  {name:24} {count:8,}")
    for kind, count in report["bad_records"].items():
        print(f"  bad: {kind:19} {count:8,}")
    for bad in report["bad_examples"]:
        print(f"    {bad['key']}: {bad['reason']}")
    print(f"picture: {report['picture']}" if report["picture"] else "no readable image: no picture")
