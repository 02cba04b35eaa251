"""Parts → documents: what stands between them, what is scored, where they are cut."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from latentlm.sequence import TextSpan
from latentlm.vocabulary import special_ids
from latentlm_platform.batches.documents import (
    Composer,
    PosteriorSpan,
    Spans,
    has_latents,
    scored_of,
    size_of,
)
from latentlm_platform.errors import UserError
from making_chunks import Given, chunk_of, image, label, sound, text

END, _, EOD, BOD, _ = special_ids(300)
WORDS = Composer(20, 300, label_words=((7,), (8, 9)))
CLASSES = Composer(5, None)


def parts_of(*given: Given) -> Any:
    return chunk_of([given], with_std=True).parts(0)


def compose(composer: Composer, *given: Given) -> list[Spans]:
    return composer.compose(parts_of(*given), key="3 of pages")


def read(spans: Spans) -> list[tuple[Any, bool]]:
    """(word or "z" and its part's number, whether it is scored) of each position."""
    found: list[tuple[Any, bool]] = []
    for span in spans:
        if isinstance(span, TextSpan):
            found += [(word, span.scored) for word in span.token_ids.tolist()]
        else:
            found += [(f"z{span.place}", span.scored)] * len(span)
    return found


def scored(*values: Any) -> list[tuple[Any, bool]]:
    return [(value, True) for value in values]


def given_only(*values: Any) -> list[tuple[Any, bool]]:
    return [(value, False) for value in values]


class TestClasses:
    """A model of classes reads a label and latents, with nothing between them."""

    def test_a_class_image(self) -> None:
        (spans,) = compose(CLASSES, label(2), image(4))
        assert read(spans) == [*given_only(2), *scored(*["z1"] * 4)]
        assert (size_of(spans), scored_of(spans), has_latents(spans)) == (5, 4, True)

    def test_posteriors_are_kept_as_they_are(self) -> None:
        parts = parts_of(label(2), image(4))
        ((_, span),) = CLASSES.compose(parts, key="x")
        assert isinstance(span, PosteriorSpan)
        assert span.mean_NZ is parts[1].mean_NZ
        assert span.std_NZ is parts[1].std_NZ
        assert (span.place, len(span)) == (1, 4)

    def test_text_and_long_images_are_refused(self) -> None:
        with pytest.raises(UserError, match="cannot read a part of kind text; set model"):
            compose(CLASSES, text(1), image(3))
        with pytest.raises(UserError, match="record 3 of pages has a part of 6 positions"):
            compose(CLASSES, label(2), image(5))

    def test_a_label_alone_says_nothing(self) -> None:
        assert compose(CLASSES, label(2)) == compose(CLASSES) == []


class TestWords:
    """A model with a vocabulary reads END first, signals between BOD and EOD, and END last."""

    def test_text(self) -> None:
        (spans,) = compose(WORDS, text(1, 2, 3))
        assert read(spans) == [*given_only(END), *scored(1, 2, 3, END)]
        assert not has_latents(spans)

    def test_a_page(self) -> None:
        (spans,) = compose(WORDS, text(1, 2), image(3), text(4), sound(2))
        assert read(spans) == [
            *given_only(END),
            *scored(1, 2, BOD, "z1", "z1", "z1", EOD, 4, BOD, "z3", "z3", EOD, END),
        ]

    def test_what_is_given_only_is_not_scored_nor_are_its_marks(self) -> None:
        (spans,) = compose(WORDS, image(2, scored=False), text(5, scored=False), text(6))
        assert read(spans) == [*given_only(END, BOD, "z0", "z0", EOD, 5), *scored(6, END)]
        (spans,) = compose(WORDS, text(6), image(1, scored=False))
        assert read(spans)[-4:] == [*given_only(BOD, "z1", EOD), *scored(END)]

    def test_a_class_image_by_the_name_of_its_class(self) -> None:
        (spans,) = compose(WORDS, label(1), image(2))
        assert read(spans) == [*given_only(END, 8, 9), *scored(BOD, "z1", "z1", EOD, END)]
        with pytest.raises(UserError, match="these classes have no names; name them"):
            compose(Composer(20, 300), label(1), image(2))

    @pytest.mark.parametrize("parts", [(), (text(),), (text(), text()), (text(1, scored=False),)])
    def test_without_anything_scored_there_is_no_document(self, parts: Sequence[Given]) -> None:
        assert compose(WORDS, *parts) == []


class TestCutting:
    """What is longer than a row is cut between parts, and text inside; never a signal."""

    def test_between_parts(self) -> None:
        first, second = compose(WORDS, text(*range(8)), image(6), text(*range(10, 19)), image(5))
        assert read(first) == [*given_only(END), *scored(*range(8), BOD, *["z1"] * 6, EOD)]
        assert read(second) == [
            *given_only(END),
            *scored(*range(10, 19), BOD, *["z3"] * 5, EOD, END),
        ]

    def test_inside_text(self) -> None:
        documents = compose(WORDS, text(*range(40)))
        assert [read(spans) for spans in documents] == [
            [*given_only(END), *scored(*range(18))],
            [*given_only(END), *scored(*range(18, 36))],
            [*given_only(END), *scored(36, 37, 38, 39, END)],
        ]

    @pytest.mark.parametrize("words", [17, 18, 19, 36, 37])
    def test_at_the_border(self, words: int) -> None:
        documents = compose(WORDS, text(*range(words)))
        assert [word for spans in documents for word, of in read(spans) if of][:-1] == [
            *range(words)
        ]
        assert all(size_of(spans) <= WORDS.length for spans in documents)
        assert len(documents) == -(-words // 18)

    def test_a_piece_that_is_given_only_is_left_out(self) -> None:
        (only,) = compose(WORDS, text(*range(18), scored=False), image(6))
        assert read(only) == [*given_only(END), *scored(BOD, *["z1"] * 6, EOD, END)]

    def test_anything_fits_or_is_cut(self) -> None:
        random = np.random.default_rng(0)
        for _ in range(200):
            parts = [
                text(*random.integers(0, 200, random.integers(0, 45)).tolist())
                if random.random() < 0.5
                else image(int(random.integers(1, 17)))
                for _ in range(random.integers(1, 6))
            ]
            documents = compose(WORDS, *parts)
            found = [what for spans in documents for what, _ in read(spans)]
            words = [word for part in parts for word in part.words]
            assert [w for w in found if w not in (END, BOD, EOD) and isinstance(w, int)] == words
            for place, part in enumerate(parts):
                assert found.count(f"z{place}") == part.latents
            assert all(0 < size_of(spans) <= 20 for spans in documents)
            assert all(spans[0].token_ids.tolist() == [END] for spans in documents)  # type: ignore

    def test_a_signal_longer_than_a_row(self) -> None:
        assert len(compose(WORDS, image(16))) == 1
        told = (
            r"record 3 of pages has a part of 21 positions, but a row holds 20: raise"
            r" corpus.sequence_tokens, or set corpus.too_long: skip to leave such records out"
        )
        with pytest.raises(UserError, match=told) as refused:
            compose(WORDS, text(1), image(17))
        assert "\n" not in str(refused.value)
        skipping = Composer(20, 300, too_long="skip")
        assert compose(skipping, text(1), image(17)) == []
        assert len(compose(skipping, text(1), image(16))) == 2
