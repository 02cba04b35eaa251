"""What a model is trained and validated on: the corpus in the mode that `latents.mode` names.

All modes read the same records in the same order; only who encodes a chunk, and when, differs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentlm.models import LOSSES
from latentlm_platform.batches.collating import RawBatch, collate
from latentlm_platform.batches.documents import Composer, has_latents, size_of
from latentlm_platform.batches.lane import (
    Cursor,
    LaneDocument,
    LaneSource,
    Ref,
    Shelf,
    cut_documents,
)
from latentlm_platform.batches.lanes import LaneOrder
from latentlm_platform.batches.packing import best_fit
from latentlm_platform.batches.shelves import (
    CachedShelf,
    EncodingGraph,
    StreamedShelf,
    WriteThroughShelf,
    open_encoded,
    order_of,
    wishes,
)
from latentlm_platform.batches.streams import Share
from latentlm_platform.corpora.splits import Splits
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.latents.decoding import ChunkDecoder
from latentlm_platform.latents.encoding import sampled_chunks
from latentlm_platform.training.losses import LossLaw

VALIDATION_EPOCH = 2**31  # keys the noise of validation apart from every training epoch's


@dataclass(frozen=True)
class ModelInputs:
    """A corpus divided, the codec that draws its latents, and the cache of what is encoded."""

    experiment: Experiment
    splits: Splits
    cache: LatentCache
    codec_folder: Path

    def start(self) -> Cursor:
        """Where every lane begins."""
        return Cursor.start(sources=1)

    def composer(self) -> Composer:
        """How records become documents of this model."""
        settings = self.experiment.model_settings()
        return Composer((settings.latent_count or 0) + 1, vocabulary=None)

    def loss_law(self) -> LossLaw:
        """What the losses of this model are called and weigh."""
        train = self.experiment.train
        codes = self.experiment.model.kind == "code_lm"
        names = tuple("code" if codes and name == "text" else name for name in LOSSES)
        return LossLaw((train.alpha, 1.0, 1.0, train.stop_weight), names)

    def sources(self, cursors: dict[int, Cursor], *, rows: int) -> list[LaneSource]:
        """The corpora of a run as some lanes read them, `rows` of each lane at least."""
        experiment, corpus = self.experiment, self.experiment.corpus
        order = order_of(self.splits.train, seed=experiment.model_seed)
        return [
            LaneSource(
                name=corpus.source,
                order=order,
                shelf=self._shelf(order, cursors, rows=rows),
                seed=experiment.model_seed,
                flip=corpus.flip,
                max_bad_fraction=corpus.max_bad_fraction,
            )
        ]

    def _shelf(self, order: LaneOrder, cursors: dict[int, Cursor], *, rows: int) -> Shelf:
        latents, corpus = self.experiment.latents, self.experiment.corpus
        if latents.mode == "cached":
            return CachedShelf(self.cache)
        graph = EncodingGraph(
            ChunkDecoder(self.splits.train, "train"),
            codec_folder=self.codec_folder,
            latents=latents,
            readers=corpus.readers,
            flip=corpus.flip,
            seed=self.experiment.model_seed,
            cache=self.cache,
        )
        wished = wishes(order, cursors, number=0)
        leg = order.chunks_for(rows, lanes=len(cursors))
        if latents.mode == "streamed":
            return StreamedShelf(wished, graph.streamed, open_encoded, leg=leg, whole=True)
        return WriteThroughShelf(wished, graph.written, self.cache, leg=leg)

    def held_out(self, rank: int, *, workers: int, share: Share) -> Iterator[RawBatch]:
        """This rank's rows of the held-out documents; every rank gets as many.

        All together they are the same rows for any number of workers: a multiple of the lanes or,
        where there are fewer rows than lanes, all of them on every rank.
        """
        rows = self._held_out_rows()
        whole = len(rows) // share.lanes * share.lanes
        mine = rows[:whole][rank::workers] if whole else rows
        size, settings = share.micro_batch_size, self.experiment.codec_settings()
        for start in range(0, len(mine), size):
            yield collate(
                mine[start : start + size],
                length=self.composer().length,
                latent_width=settings.posterior_width,
            )

    def _held_out_rows(self) -> list[list[LaneDocument]]:
        """`train.validation_items` held-out records, drawn by the experiment's seed, in rows."""
        composer, documents = self.composer(), []
        wanted = self.experiment.train.validation_items
        for chunk, row in self._held_out_records():
            encoded = self.cache.read_chunk("held_out", chunk)
            id_ = int(encoded.ids[row])
            parts = encoded.parts(row)
            found = composer.compose(parts, key=f"{id_} held out") if parts else []
            ref = Ref(0, VALIDATION_EPOCH, chunk, row)
            documents += cut_documents(ref, id_, found)
            if len(documents) >= wanted:
                break
        rows = []
        while documents:
            sizes = [size_of(document.spans) for document in documents]
            latents = [has_latents(document.spans) for document in documents]
            chosen = best_fit(sizes, latents, length=composer.length)
            rows.append([documents[i] for i in chosen])
            documents = [d for i, d in enumerate(documents) if i not in set(chosen)]
        return rows

    def _held_out_records(self) -> Iterator[tuple[int, int]]:
        """(chunk, row) of held-out records that were encoded, in the order of their drawing."""
        seed = self.experiment.seed
        chunks = held_out_chunks(self.experiment, self.splits)
        sizes = self.splits.held_out.chunk_sizes
        places = [(chunk, row) for chunk in chunks for row in range(int(sizes[chunk]))]
        for i in np.random.default_rng([seed, 4]).permutation(len(places)):
            yield places[int(i)]


def held_out_chunks(experiment: Experiment, splits: Splits) -> tuple[int, ...]:
    """The chunks that validation records are drawn from."""
    wanted = experiment.train.validation_items
    return sampled_chunks(splits.held_out.chunk_sizes, records=wanted, seed=experiment.seed)
