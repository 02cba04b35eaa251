"""Rows hold whole documents, each once, none waits for ever, and little of a row stays empty."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm_platform.batches.packing import LOOKAHEAD, LOOKAHEAD_ROWS, best_fit

LENGTH = 512
MOST_PADDING = 0.03


class Size(NamedTuple):
    """A document: its positions, and whether it holds latents."""

    positions: int
    latents: bool


Make = Callable[[np.random.Generator], Size]


def texts(mean: float) -> Make:
    """Lengths as those of pages are: log-normal, cut at a row."""

    def make(random: np.random.Generator) -> Size:
        length = random.lognormal(np.log(mean) - 0.5, 1.0)
        return Size(int(np.clip(length, 1, LENGTH - 2)) + 2, False)

    return make


def pairs(latents: int, mean: float) -> Make:
    caption = texts(mean)
    return lambda random: Size(min(LENGTH, latents + 2 + caption(random).positions), True)


def images(latents: int) -> Make:
    return lambda random: Size(latents + 5, True)


def mixed(*makes: Make, weights: tuple[float, ...]) -> Make:
    shares = np.array(weights) / sum(weights)
    return lambda random: makes[random.choice(len(makes), p=shares)](random)


CORPORA = {
    "text": texts(LENGTH / 8),
    "short text": texts(LENGTH / 60),
    "long text": texts(LENGTH / 2),
    "pairs": pairs(LENGTH // 16, LENGTH / 16),
    "text and pairs": mixed(texts(64), pairs(128, 32), weights=(2, 1)),
    "text, pairs and pages": mixed(texts(64), pairs(64, 32), pairs(192, 96), weights=(2, 1, 1)),
    "class images and text": mixed(images(64), texts(64), weights=(1, 1)),
}


class Packed(NamedTuple):
    """What a lane makes of a corpus: rows of document numbers, and how many wait in the end."""

    documents: list[Size]
    rows: list[list[int]]
    waiting: list[int]


def pack(make: Make, *, rows: int) -> Packed:
    """As a lane does: a look-ahead is kept full, and best fit chooses from it."""
    random, documents, waiting, packed = np.random.default_rng(0), [], [], []
    for _ in range(rows):
        while (
            len(waiting) < LOOKAHEAD
            or sum(documents[n].positions for n in waiting) < LOOKAHEAD_ROWS * LENGTH
        ):
            waiting.append(len(documents))
            documents.append(make(random))
        held = [documents[n] for n in waiting]
        chosen = best_fit([d.positions for d in held], [d.latents for d in held], length=LENGTH)
        packed.append([waiting[i] for i in chosen])
        waiting = [n for i, n in enumerate(waiting) if i not in set(chosen)]
    return Packed(documents, packed, waiting)


@pytest.mark.parametrize("make", CORPORA.values(), ids=CORPORA)
def test_little_of_a_row_stays_empty(make: Make) -> None:
    documents, rows, _ = pack(make, rows=250)
    used = sum(documents[n].positions for row in rows for n in row)
    assert 1 - used / (LENGTH * len(rows)) <= MOST_PADDING
    assert all(sum(documents[n].positions for n in row) <= LENGTH for row in rows)


@pytest.mark.parametrize("make", CORPORA.values(), ids=CORPORA)
def test_every_document_comes_once_and_none_waits_for_ever(make: Make) -> None:
    documents, rows, waiting = pack(make, rows=250)
    assert sorted([n for row in rows for n in row] + waiting) == list(range(len(documents)))
    firsts = [row[0] for row in rows]
    assert firsts == sorted(firsts)  # a row begins with the oldest of all that wait
    for number, row in enumerate(rows):
        later = [n for other in rows[number:] for n in other] + waiting
        assert row[0] == min(later)


def test_rows_mix_what_there_is() -> None:
    documents, rows, _ = pack(CORPORA["class images and text"], rows=250)
    assert sum(len({documents[n].latents for n in row}) == 2 for row in rows) > 240


def test_a_row_takes_the_oldest_of_the_modality_it_lacks() -> None:
    sizes, latents = [10, 90, 30, 40, 50, 20], [False, False, True, True, False, True]
    assert best_fit(sizes, latents, length=100)[:2] == [0, 2]
    assert best_fit(sizes, latents, length=35)[:2] == [0, 5]
    assert best_fit([10, 30, 20], [True, True, False], length=35) == [0, 2]
    assert best_fit([10, 30, 20], [True, True, True], length=40) == [0, 1]


def test_a_row_is_filled_as_full_as_it_can_be() -> None:
    alike = [False] * 6
    assert sorted(best_fit([10, 60, 50, 41, 40, 2], alike, length=100)) == [0, 2, 4]
    assert best_fit([10, 45, 45, 90, 1, 1], alike, length=100) == [0, 3]  # long before short ones
    assert best_fit([10, 30, 30, 30, 7, 7], alike, length=47) == [0, 1, 4]  # old before young ones
    assert best_fit([100, 1, 1, 1, 1, 1], alike, length=100) == [0]
    assert best_fit([3], [True], length=100) == [0]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=12),
    st.integers(30, 60),
)
@settings(max_examples=150, deadline=None)
def test_no_choice_would_fill_it_better(waiting: list[tuple[int, bool]], length: int) -> None:
    """After the oldest, and one of another modality where it fits: against trying them all."""
    sizes, latents = [size for size, _ in waiting], [has for _, has in waiting]
    chosen = best_fit(sizes, latents, length=length)
    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen)
    given_ones = [0]
    other = [
        i for i in range(len(sizes)) if latents[i] != latents[0] and sizes[0] + sizes[i] <= length
    ]
    if other:
        assert chosen[1] == other[0]
        given_ones.append(other[0])
    sums = {sum(sizes[i] for i in given_ones)}
    for i in range(len(sizes)):
        if i not in given_ones:
            sums |= {total + sizes[i] for total in sums if total + sizes[i] <= length}
    assert sum(sizes[i] for i in chosen) == max(sums)
    assert best_fit(sizes, latents, length=length) == chosen
