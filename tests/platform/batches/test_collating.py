"""Rows as arrays, and their latents drawn: packing's own, and each signal what it is alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from latentlm.codec.contract import LatentPosterior
from latentlm.codec.speech_conv import SpeechConvCodec
from latentlm.codec.vector_quantized import VectorQuantizedCodec
from latentlm.randomness import RowNoise
from latentlm.sequence import PADDING, LatentSpan, PackedBatch, TextSpan, pack
from latentlm.settings import DiagonalGaussianVariance, FixedVariance
from latentlm_platform.batches.collating import RawBatch, collate
from latentlm_platform.batches.documents import Composer, PosteriorSpan
from latentlm_platform.batches.lane import CUT_IDS, SOURCE_IDS, LaneDocument, Ref
from latentlm_platform.training.drawing import LatentBatch, draw_batch
from making_chunks import WIDTH, Given, chunk_of, image, sound, text
from making_exports import CODES, SPEECH

LENGTH, SEED = 40, 7
COMPOSER = Composer(LENGTH, 300)
CPU = torch.device("cpu")
LAWS = (SPEECH.variance, FixedVariance(sigma=0.4), DiagonalGaussianVariance())


def codec_of(variance: Any = SPEECH.variance) -> SpeechConvCodec:
    codec = SpeechConvCodec(replace(SPEECH, variance=variance))
    codec.set_statistics(mean=0.3, std=1.7)
    return codec.eval()


def document(
    *given: Given, record: int = 0, source: int = 0, epoch: int = 0, cut: int = 0
) -> LaneDocument:
    parts = chunk_of([given], first_id=record, with_std=True).parts(0)
    spans = COMPOSER.compose(parts, key="x")[cut]
    id_ = record + source * SOURCE_IDS + cut * CUT_IDS
    return LaneDocument(Ref(source, epoch, 0, record, cut), id_, spans)


ROWS = [
    [document(text(1, 2), sound(5), record=3), document(text(*range(20)), record=4)],
    [document(sound(1), sound(9), text(3), sound(4), record=5, source=1, epoch=2)],
    [document(text(7), record=6)],
    [
        document(text(*range(38)), image(6), text(5), record=9, cut=1),
        document(image(11), record=8, epoch=1),
    ],
]


def collated(rows: Sequence[Sequence[LaneDocument]], *, with_std: bool = False) -> RawBatch:
    raw = collate(rows, length=LENGTH, latent_width=WIDTH)
    return raw if with_std else replace(raw, std_SLZ=None)


def drawn(rows: Sequence[Sequence[LaneDocument]], codec: Any, *, seed: int = SEED) -> LatentBatch:
    return draw_batch(collated(rows, with_std=True), codec, seed=seed, device=CPU)


def drawn_alone(document: LaneDocument, span: PosteriorSpan, codec: Any) -> LatentSpan:
    """A signal's latents by the definition: its posterior, its noise, nothing beside it."""
    ids, epochs = torch.tensor([document.id]), torch.tensor([document.ref.epoch])
    noise = RowNoise(seed=SEED, ids_B=ids, epochs_B=epochs).at(span.place)
    assert span.std_NZ is not None
    posterior = LatentPosterior(*(torch.tensor(v)[None] for v in (span.mean_NZ, span.std_NZ)))
    return LatentSpan(codec.normalise(codec.draw(posterior, noise=noise))[0].numpy(), span.scored)


def packed_alone(rows: Sequence[Sequence[LaneDocument]], codec: Any) -> list[PackedBatch]:
    """Each row by latentlm.sequence.pack."""
    return [
        pack(
            [
                tuple(
                    span if isinstance(span, TextSpan) else drawn_alone(document, span, codec)
                    for span in document.spans
                )
                for document in row
            ],
            length=LENGTH,
            latent_width=WIDTH,
        )
        for row in rows
    ]


@pytest.mark.parametrize("variance", LAWS, ids=lambda law: law.kind)
def test_a_batch_is_what_pack_makes_of_its_documents(variance: Any) -> None:
    codec = codec_of(variance)
    found, first = drawn(ROWS, codec).packed, 0
    for row, wanted in enumerate(packed_alone(ROWS, codec)):
        assert wanted.ids_BT.shape == (1, LENGTH)
        numbers = torch.where(wanted.document_BT == PADDING, PADDING, wanted.document_BT + first)
        assert torch.equal(found.document_BT[row], numbers[0])
        for name in ("ids_BT", "position_BT", "scored_BT", "latents_BTZ"):
            ours, theirs = getattr(found, name)[row], getattr(wanted, name)[0]
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs), name
        first += len(ROWS[row])
    assert found.latents_BTZ.abs().sum(-1).bool().sum() == 5 + 14 + 6 + 11


def test_what_keys_the_noise_and_names_the_source() -> None:
    raw = collated(ROWS)
    assert raw.document_ids_N.tolist() == [3, 4, 5 + SOURCE_IDS, 6, 9 + CUT_IDS, 8]
    assert raw.epochs_N.tolist() == [0, 0, 2, 0, 0, 1]
    assert raw.source_N.tolist() == [0, 0, 1, 0, 0, 0]
    assert raw.lengths_S.tolist() == [5, 1, 9, 4, 6, 11]
    assert raw.signal_document_S.tolist() == [0, 2, 2, 2, 4, 5]
    assert raw.signal_place_S.tolist() == [1, 0, 1, 3, 1, 0]
    found = drawn(ROWS, codec_of()).packed
    assert found.source_BT[1].unique().tolist() == [0, 1]  # padding is of the first source
    assert (found.source_BT[1] == 1).equal(found.document_BT[1] == 2)
    assert len(drawn(ROWS, codec_of()).noise) == 6


def test_latents_do_not_depend_on_what_else_is_in_the_batch() -> None:
    codec, rows = codec_of(), [ROWS[3], ROWS[1]]
    whole, few = drawn(ROWS, codec).packed, drawn(rows, codec).packed
    assert torch.equal(whole.latents_BTZ[[3, 1]], few.latents_BTZ)
    turned = [[*reversed(ROWS[3])]]
    latents = drawn(turned, codec).packed.latents_BTZ[0]
    kept = whole.latents_BTZ[3]
    assert torch.equal(latents[latents.any(-1)][:11], kept[kept.any(-1)][6:])


def signals(rows: Sequence[Sequence[LaneDocument]], *, seed: int = SEED) -> list[Any]:
    """The latents of each signal of a batch."""
    raw = collated(rows, with_std=True)
    packed = draw_batch(raw, codec_of(FixedVariance(sigma=1.0)), seed=seed, device=CPU).packed
    flat = packed.latents_BTZ.flatten(0, 1)[torch.from_numpy(raw.latent_places_P)]
    return [part.numpy() for part in flat.split(raw.lengths_S.tolist())]


@pytest.mark.parametrize(
    "change", [{"source": 1}, {"record": 77}, {"epoch": 1}, {"cut": 1}, {"place": 4}], ids=str
)
def test_noise_is_of_source_record_epoch_and_place(change: dict[str, int]) -> None:
    """Of two signals with the same posterior one is changed: it has other noise, no other has."""
    first, other = document(sound(6), sound(6), record=1), document(sound(6), record=2)
    before = signals([[first, other]])
    spans = list(first.spans)
    ref, id_ = first.ref, first.id
    if "place" in change:
        spans[2] = replace(spans[2], place=4)  # type: ignore[type-var]
    else:
        ref = ref._replace(**{k: v for k, v in change.items() if k in Ref._fields})
        id_ = change.get("record", 1) + ref.source * SOURCE_IDS + ref.cut * CUT_IDS
    after = signals([[LaneDocument(ref, id_, tuple(spans)), other]])
    changed = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [True, "place" not in change, False]
    assert np.abs(before[0] - after[0]).mean() > 0.1  # as far apart as other noise is


def test_noise_is_of_the_seed() -> None:
    rows = [[document(sound(6), record=1)]]
    assert not np.allclose(signals(rows)[0], signals(rows, seed=8)[0])
    assert np.array_equal(signals(rows)[0], signals(rows)[0])


def test_rows_without_signals_and_codecs_without_deviations() -> None:
    raw = collate([ROWS[2]], length=LENGTH, latent_width=WIDTH)
    assert raw.mean_SLZ.shape == (0, 0, WIDTH)
    assert raw.std_SLZ is None
    batch = draw_batch(raw, codec_of(), seed=SEED, device=CPU).packed
    assert not batch.latents_BTZ.any()
    assert batch.latents_BTZ.shape == (1, LENGTH, WIDTH)
    chunk = chunk_of([[image(2)]])
    spans = COMPOSER.compose(chunk.parts(0), key="x")[0]
    own = collate([[LaneDocument(Ref(0, 0, 0, 0), 0, spans)]], length=LENGTH, latent_width=WIDTH)
    assert own.std_SLZ is None


def test_codes_become_words() -> None:
    codec = VectorQuantizedCodec(CODES)
    codes = np.array([[3.0], [12.0], [0.0], [7.0]], np.float32)
    spans = (TextSpan(np.array([2]), False), PosteriorSpan(codes, None, True, 1))
    rows = [[LaneDocument(Ref(0, 0, 0, 0), 5, spans)]] * 2
    raw = collate(rows, length=5, latent_width=1)
    batch = draw_batch(raw, codec, seed=0, device=CPU, as_words=True).packed
    assert batch.ids_BT.tolist() == [[2, 3, 12, 0, 7]] * 2
    assert batch.latents_BTZ.shape == (2, 5, 0)
    assert batch.scored_BT[0].tolist() == [False, True, True, True, True]
