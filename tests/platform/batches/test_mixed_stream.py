"""Class images, text and captions with pictures in one stream: packed, each is what it is alone."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentlm.codec.image_vit import ImageViTCodec
from latentlm.load import load_codec, save_codec
from latentlm.models import LOSSES, LatentLM, LossTerms, Targets, find_targets
from latentlm.sequence import PADDING, TextSpan
from latentlm.settings import HeadSettings, LatentLMSettings
from latentlm.signals import pixels_to_signal
from latentlm.vocabulary import special_ids
from latentlm_platform.batches.collating import collate
from latentlm_platform.batches.documents import Composer, PosteriorSpan, scored_of
from latentlm_platform.batches.lane import Cursor, Lane, LaneDocument, LaneSource
from latentlm_platform.batches.shelves import CachedShelf, order_of
from latentlm_platform.corpora.corpus_index import open_corpus
from latentlm_platform.corpora.records import Decoded, PartSource
from latentlm_platform.corpora.splits import Split
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.latents.decoding import ChunkDecoder, Words
from latentlm_platform.latents.encoded import EncodedChunk
from latentlm_platform.latents.encoder import EncoderActor
from latentlm_platform.training.drawing import LatentBatch, draw_batch
from latentlm_platform.training.losses import LossLaw, StepSums
from making_chunks import BAD, Given, image, label, same_chunk, shown, source_of, text
from making_corpora import corpus, make_tar, png
from making_exports import IMAGES, make_ranks

VOCABULARY, LENGTH, N = 261, 64, 4
NAMES = ("bird", "cat", "dog")
COMPOSER = Composer(LENGTH, VOCABULARY, tuple(tuple(name.encode()) for name in NAMES))
SPECIAL = special_ids(VOCABULARY)
CPU = torch.device("cpu")
Rows = list[list[LaneDocument]]


def make_codec() -> ImageViTCodec:
    torch.manual_seed(0)
    codec = ImageViTCodec(IMAGES)
    codec.set_statistics(mean=0.1, std=1.3)
    return codec.eval()


def make_model(stop: Any = "count") -> LatentLM:
    torch.manual_seed(1)
    settings = LatentLMSettings(
        vocabulary=VOCABULARY, latent_count=N, latent_width=4, width=32, depth=2, heads=4,
        kv_heads=2, ffn_width=48, stop=stop, head=HeadSettings(depth=2, ffn_width=24),
    )  # fmt: skip
    model = LatentLM(settings)
    for weight in (model.head.modulation.weight, model.head.output.weight):
        torch.nn.init.normal_(weight, std=0.2)
    return model


def sources() -> list[LaneSource]:
    """Class images by name, text, and captions with their pictures, 1 : 2 : 1."""
    random = np.random.default_rng(0)

    def words(most: int) -> Given:
        return text(*random.integers(97, 123, random.integers(1, most)).tolist())

    def chunks(make: Any) -> list[Any]:
        return [[make() if random.random() > 0.1 else BAD for _ in range(9)] for _ in range(6)]

    return [
        source_of(chunks(lambda: (label(int(random.integers(3))), image(N))), name="images"),
        source_of(chunks(lambda: (words(40),)), name="pages", weight=2.0, seed=1),
        source_of(chunks(lambda: (words(12), image(N), words(5), image(N))), name="pairs", seed=2),
    ]


def stream(count: int) -> Rows:
    lane = Lane(sources(), COMPOSER, lane=0, cursor=Cursor.start(3))
    return [lane.next_row() for _ in range(count)]


class Drawn(NamedTuple):
    batch: LatentBatch
    targets: Targets


def draw(rows: Sequence[Sequence[LaneDocument]], model: LatentLM, *, dropout: float = 0.0) -> Drawn:
    raw = collate(rows, length=LENGTH, latent_width=4)
    batch = draw_batch(raw, make_codec(), seed=5, device=CPU)
    targets = find_targets(
        batch.packed, model.settings, noise=batch.noise, condition_dropout=dropout, sources=3
    )
    return Drawn(batch, targets)


def loss(rows: Sequence[Sequence[LaneDocument]], model: LatentLM, **how: float) -> LossTerms:
    batch, targets = draw(rows, model, **how)
    terms: LossTerms = model(batch.packed, targets, noise=batch.noise, timesteps_per_token=2)
    return terms


def summed(terms: Sequence[LossTerms]) -> LossTerms:
    return LossTerms(*(torch.stack(parts).sum(0) for parts in zip(*terms, strict=True)))


ROWS = stream(5)
DOCUMENTS = [document for row in ROWS for document in row]


def test_the_stream_is_a_mixed_one() -> None:
    assert all(len(row) > 1 for row in ROWS)
    assert {document.ref.source for document in DOCUMENTS} == {0, 1, 2}
    kinds = [{type(span) for document in row for span in document.spans} for row in ROWS]
    assert {TextSpan, PosteriorSpan} in kinds
    assert any(len({document.ref.source for document in row}) == 3 for row in ROWS)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("stop", ["count", "continue"])
def test_packed_is_one_by_one_in_losses_and_gradients(stop: str, dropout: float) -> None:
    model = make_model(stop)
    packed = loss(ROWS, model, dropout=dropout)
    packed.sums_K.sum().backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    alone = summed([loss([[document]], model, dropout=dropout) for document in DOCUMENTS])
    alone.sums_K.sum().backward()
    assert torch.equal(packed.counts_K, alone.counts_K)
    assert packed.counts_K[:3].min() > 5
    assert (packed.counts_K[3] > 0) == (stop == "continue")
    torch.testing.assert_close(packed.sums_K, alone.sums_K, rtol=2e-6, atol=1e-5)
    assert len(together) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        scale = float(parameter.grad.abs().max())
        assert scale > 1e-4
        torch.testing.assert_close(together[name], parameter.grad, rtol=1e-4, atol=3e-6 * scale)


def test_losses_of_a_source_are_those_of_its_documents_alone() -> None:
    model = make_model()
    with torch.no_grad():
        packed = loss(ROWS, model)
        for number in range(3):
            own = [document for document in DOCUMENTS if document.ref.source == number]
            alone = summed([loss([[document]], model) for document in own])
            found = packed.source_sums_KS[:, number]
            torch.testing.assert_close(found, alone.sums_K, rtol=2e-6, atol=1e-5)
            counts = packed.source_counts_KS[:, number].double()
            assert torch.equal(counts, alone.counts_K)
            scored = sum(scored_of(document.spans) for document in own)
            assert counts @ torch.tensor([1 / 2, 1, 1, 1]).double() == scored  # 2 times a latent
    assert packed.source_counts_KS[LOSSES.index("diffusion"), 1] == 0
    assert packed.source_counts_KS[LOSSES.index("text"), 0] == 0  # the name of a class is given


def test_a_text_perplexity_holds_words_alone() -> None:
    model = make_model()
    (packed, _), targets = draw(ROWS, model)
    found = loss(ROWS, model)
    sums = StepSums(3)
    sums.add(found)
    names = ("images", "pages", "pairs")
    means = LossLaw((1.0,) * len(LOSSES), sources=names).means(sums.vector())
    with torch.no_grad():
        logits = model.softmax_head(model.hidden(packed))
    words = [
        (row, place)
        for row in range(len(ROWS))
        for place in range(1, LENGTH)
        if packed.source_BT[row, place] == 1
        and packed.document_BT[row, place] != PADDING
        and 0 <= packed.ids_BT[row, place] < SPECIAL.end
    ]
    rows, places = torch.tensor(words).T
    own = F.cross_entropy(logits[rows, places - 1], packed.ids_BT[rows, places])
    assert means["loss_text_pages"] == pytest.approx(own.item(), rel=1e-5)
    pages = [document for document in DOCUMENTS if document.ref.source == 1]
    assert len(words) == sum(len(document.spans[1]) for document in pages)  # the first one too
    assert not set(targets.text_ids_W.tolist()) & set(SPECIAL)
    assert set(targets.structure_ids_W.tolist()) == {SPECIAL.end, SPECIAL.bod, SPECIAL.eod}


def other(document: LaneDocument) -> LaneDocument:
    """A document with other words and latents, of the same form."""
    spans = [
        replace(span, mean_NZ=-3 * span.mean_NZ)
        if isinstance(span, PosteriorSpan)
        else replace(span, token_ids=np.where(span.token_ids < 256, 48, span.token_ids))
        for span in document.spans
    ]
    return document._replace(spans=tuple(spans), id=document.id + 10_000)


@pytest.mark.parametrize("number", range(0, len(DOCUMENTS), 3))
def test_changing_one_document_leaves_every_other_as_it_is(number: int) -> None:
    """To the last bit: hidden states, and errors by document, wherever it stands."""
    model, changed = make_model(), DOCUMENTS[number]
    rows = [[other(d) if d is changed else d for d in row] for row in ROWS]
    with torch.no_grad():
        (before, _), _ = draw(ROWS, model)
        (after, _), _ = draw(rows, model)
        hidden, now = model.hidden(before), model.hidden(after)
    document_BT = before.document_BT[:, :-1]
    same = (hidden == now).all(-1)
    assert same[(document_BT != number) & (document_BT != PADDING)].all()
    assert not same[document_BT == number][1:].all()
    sources_kept = [s for s in range(3) if s != changed.ref.source]
    with torch.no_grad():
        ours, theirs = loss(ROWS, model), loss(rows, model)
    assert torch.equal(ours.source_sums_KS[:, sources_kept], theirs.source_sums_KS[:, sources_kept])
    assert not torch.equal(ours.sums_K, theirs.sums_K)


CAPTION = PartSource("text", "txt", scored=True)
PICTURE = PartSource("image", "png", scored=True)


class TestFiles:
    """Tars of pages and of captions with pictures, through reading, decoding, encoding, caching."""

    @pytest.fixture
    def codec(self, tmp_path: Path) -> Any:
        save_codec(tmp_path / "codec", codec=make_codec())
        return load_codec(tmp_path / "codec")

    @pytest.fixture(autouse=True)
    def _home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LATENTLM_HOME", str(tmp_path / "home"))

    @staticmethod
    def members() -> Iterator[tuple[str, bytes]]:
        for number in range(11):
            if number != 4:
                yield f"{number:02}.txt", f"picture {number} – ü".encode()
            yield f"{number:02}.png", b"torn" if number == 7 else png(20 * number)

    def split(self, tmp_path: Path, name: str) -> Split:
        parts = {"pairs": (CAPTION, PICTURE), "pages": (CAPTION,)}[name]
        members = [m for m in self.members() if name == "pairs" or m[0].endswith(".txt")]
        path = make_tar(tmp_path / f"{name}.tar", members)
        settings = corpus(source=str(path), channels=1, lanes=2, max_bad_fraction=0.5)
        index = open_corpus(str(path), corpus=settings, parts=parts)
        return Split(index, settings, "all", 0)

    def cached(self, tmp_path: Path, split: Split, name: str) -> LatentCache:
        """Chunks as the encoding pass writes them, each read back as it was encoded."""
        cache = LatentCache(tmp_path / "cache" / name, 4)
        decode = ChunkDecoder(split, "train", Words(str(make_ranks(tmp_path)), VOCABULARY))
        actor = EncoderActor(tmp_path / "codec", batch_size=3, orientations=1)
        for chunk in range(len(split.chunk_sizes)):
            encoded = EncodedChunk.of_arrays(actor.encode(decode(chunk)))
            keys = [record.key for record in split.decode_chunk(chunk)]
            cache.write_chunk("train", chunk, encoded, keys=keys)
            assert same_chunk(cache.read_chunk("train", chunk), encoded)
        return cache

    @pytest.mark.parametrize("name", ["pairs", "pages"])
    def test_documents_of_files(self, tmp_path: Path, codec: Any, name: str) -> None:
        split = self.split(tmp_path, name)
        cache, usable = self.cached(tmp_path, split, name), 0
        for chunk in range(len(split.chunk_sizes)):
            encoded = cache.read_chunk("train", chunk)
            for row, record in enumerate(split.decode_chunk(chunk)):
                assert encoded.usable(row) == isinstance(record, Decoded)
                if isinstance(record, Decoded):
                    usable += 1
                    (spans,) = COMPOSER.compose(encoded.parts(row), key=record.key)
                    self.check(spans, record, codec)
        assert usable == (9 if name == "pairs" else 10)

    @staticmethod
    def check(spans: Any, record: Decoded, codec: Any) -> None:
        assert isinstance(record.parts[0], str)
        words = record.parts[0].encode()
        if len(record.parts) == 1:
            assert [s.token_ids.tolist() for s in spans] == [[SPECIAL.end], [*words], [SPECIAL.end]]
            return
        end, caption, bod, picture, eod, last = spans
        marks = [s.token_ids.tolist() for s in (end, bod, eod, last)]
        assert marks == [[SPECIAL.end], [SPECIAL.bod], [SPECIAL.eod], [SPECIAL.end]]
        assert caption.token_ids.tolist() == [*words]
        with torch.no_grad():
            wanted = codec.encode(pixels_to_signal(torch.from_numpy(record.pixels[None].copy())))
        assert (len(picture), picture.place) == (N, 1)
        np.testing.assert_allclose(picture.mean_NZ, wanted.mean_BNZ[0], rtol=1e-4, atol=1e-5)

    def test_rows_of_files(self, tmp_path: Path, codec: Any) -> None:
        """A mixture of both, in rows that a model learns from; another process gets the same."""
        ours = [self.lane(tmp_path) for _ in range(2)]
        rows = [ours[0].next_row() for _ in range(12)]
        assert [[shown(d) for d in row] for row in rows] == [
            [shown(d) for d in ours[1].next_row()] for _ in range(12)
        ]
        documents = [document for row in rows for document in row]
        assert {document.ref.source for document in documents} == {0, 1}
        model = make_model()
        packed = loss(rows, model)
        alone = summed([loss([[document]], model) for document in documents])
        torch.testing.assert_close(packed.sums_K, alone.sums_K, rtol=2e-6, atol=1e-5)

    def lane(self, tmp_path: Path) -> Lane:
        splits = {name: self.split(tmp_path, name) for name in ("pairs", "pages")}
        own = [
            LaneSource(
                name,
                order_of(split, seed=3),
                CachedShelf(self.cached(tmp_path, split, name)),
                3,
                max_bad_fraction=split.corpus.max_bad_fraction,
            )
            for name, split in splits.items()
        ]
        return Lane(own, COMPOSER, lane=1, cursor=Cursor.start(2))
