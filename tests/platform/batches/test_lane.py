"""A lane goes on from any cursor with exactly the rows that it would have given."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from latentlm_platform.batches.documents import Composer, scored_of, size_of
from latentlm_platform.batches.lane import Cursor, Lane, LaneSource
from latentlm_platform.batches.packing import LOOKAHEAD, LOOKAHEAD_ROWS
from latentlm_platform.errors import UserError
from making_chunks import BAD, Given, MemoryShelf, image, label, shown, source_of, text

VOCABULARY, LENGTH = 300, 40
WORDS = Composer(LENGTH, VOCABULARY)
CLASSES = Composer(6, None)
CHUNKS, RECORDS = 7, 6


def corpus(make: Callable[[np.random.Generator], Sequence[Given]], *, seed: int = 0) -> list[Any]:
    random = np.random.default_rng(seed)
    return [[make(random) for _ in range(RECORDS + n % 3)] for n in range(CHUNKS)]


def sentence(random: np.random.Generator) -> tuple[Given, ...]:
    return (text(*random.integers(0, 200, random.integers(1, 30)).tolist()),)


def pair(random: np.random.Generator) -> tuple[Given, ...]:
    return (*sentence(random)[:1], image(5)) if random.random() < 0.8 else (image(3), image(7))


def class_image(random: np.random.Generator) -> tuple[Given, ...]:
    return label(int(random.integers(3))), image(5)


def long(random: np.random.Generator) -> tuple[Given, ...]:
    words = random.integers(0, 200, random.integers(50, 130)).tolist()
    return text(*words), image(9), text(1, 2, 3)


def with_bad(random: np.random.Generator) -> tuple[Given, ...]:
    return BAD if random.random() < 0.3 else pair(random)


def source(make: Any, **settings: Any) -> LaneSource:
    return source_of(corpus(make, seed=len(settings)), **settings)


CASES: dict[str, tuple[list[LaneSource], Composer]] = {
    "class images": ([source(class_image, flip=True)], CLASSES),
    "sentences": ([source(sentence)], WORDS),
    "pairs and bad ones": ([source(with_bad, flip=True)], WORDS),
    "cut documents": ([source(long)], WORDS),
    "two sources": ([source(sentence, weight=2.0), source(with_bad, seed=3)], WORDS),
    "three sources": ([source(pair, weight=2.0), source(long), source(sentence, seed=4)], WORDS),
}


def fresh(sources: Sequence[LaneSource], composer: Composer, cursor: Any = None) -> Lane:
    """A lane over shelves of its own, from a cursor as JSON held it."""
    start = Cursor.start(len(sources)) if cursor is None else Cursor.of(json.loads(cursor))
    own = [replace(s, shelf=MemoryShelf(s.shelf.chunks)) for s in sources]  # type: ignore
    return Lane(own, composer, lane=1, cursor=start)


def state(lane: Lane) -> str:
    return json.dumps(lane.cursor().state())


@pytest.mark.parametrize(("sources", "composer"), CASES.values(), ids=CASES)
def test_a_lane_goes_on_from_any_cursor(sources: list[LaneSource], composer: Composer) -> None:
    lane, rows, cursors = fresh(sources, composer), [], []
    while len(rows) < 40 or lane.cursor().places[0].epoch < 3:
        rows.append([shown(document) for document in lane.next_row()])
        cursors.append(state(lane))
    for number in range(0, len(rows) - 1, 3):
        resumed = fresh(sources, composer, cursors[number])
        assert state(resumed) == cursors[number]
        for later in range(number + 1, min(number + 9, len(rows))):
            assert [shown(document) for document in resumed.next_row()] == rows[later]
            assert state(resumed) == cursors[later]


def test_cursors_stand_in_all_places() -> None:
    """What the test above meets: ends of windows and epochs, documents that wait, mirrored ones."""
    lane = fresh(*CASES["class images"])
    places = []
    for _ in range(60):
        assert len(lane.next_row()) == 1
        places.append(lane.cursor().places[0])
        assert not lane.cursor().waiting  # a document a row: nothing is read ahead
    assert {place.row for place in places} >= {0, 1, 2}
    assert {place.window for place in places if place.row == 0} >= {1, 2}
    lane = fresh(*CASES["three sources"])
    lane.next_row()
    waiting = lane.cursor().waiting
    assert {ref.source for ref in waiting} == {0, 1, 2}
    assert {ref.cut for ref in waiting} >= {0, 1, 2}


def test_at_the_end_of_a_window_nothing_of_it_is_read_again() -> None:
    sources, composer = CASES["class images"]
    lane, met = fresh(sources, composer), 0
    for _ in range(60):
        lane.next_row()
        place = lane.cursor().places[0]
        if place.row == 0:
            resumed = fresh(sources, composer, state(lane))
            resumed.next_row()
            order, shelf = sources[0].order, resumed.sources[0].shelf
            assert isinstance(shelf, MemoryShelf)
            pieces = order.pieces(1, place.epoch, place.window)
            epoch = place.epoch if pieces else place.epoch + 1
            pieces = pieces or order.pieces(1, epoch, 0)
            assert set(shelf.taken) == {(1, epoch, piece.chunk) for piece in pieces}
            met += 1
    assert met > 4


@pytest.mark.parametrize(("sources", "composer"), CASES.values(), ids=CASES)
def test_every_usable_record_comes_once_an_epoch(
    sources: list[LaneSource], composer: Composer
) -> None:
    """Over both lanes, and under an id of its own over all sources, records and cuts."""
    for number, one in enumerate(sources):
        assert isinstance(one.shelf, MemoryShelf)
        usable = {(c, r) for c, chunk in enumerate(one.shelf.chunks) for r in range(len(chunk))
                  if chunk.usable(r)}  # fmt: skip
        met, ids = [], {}
        for which in range(2):
            lane = Lane(sources, composer, lane=which, cursor=Cursor.start(len(sources)))
            for _ in range(400):
                row = lane.next_row()
                assert 0 < sum(size_of(d.spans) for d in row) <= composer.length
                for ref, id_, _ in row:
                    if (ref.source, ref.epoch) == (number, 0) and ref.cut == 0:
                        met.append((ref.chunk, ref.row))
                    assert ids.setdefault(id_, ref._replace(epoch=0)) == ref._replace(epoch=0)
        assert sorted(met) == sorted(usable)


def test_a_coin_by_seed_epoch_and_record_says_who_is_mirrored() -> None:
    sources, composer = CASES["class images"]
    lane, chunks = fresh(sources, composer), sources[0].shelf.chunks  # type: ignore[attr-defined]
    seen: dict[int, set[bool]] = {}
    for _ in range(300):
        ((ref, id_, spans),) = lane.next_row()
        sides = [chunks[ref.chunk].parts(ref.row, mirrored=m)[1].mean_NZ for m in (False, True)]
        which = [np.array_equal(spans[1].mean_NZ, side) for side in sides]  # type: ignore
        assert sum(which) == 1
        seen.setdefault(id_, set()).add(which[1])
    assert sum(len(sides) == 2 for sides in seen.values()) > len(seen) / 2


class TestMixtures:
    """Sources of words and pictures 2 : 1 : 1, by the positions that are scored."""

    weights = np.array([2.0, 1.0, 1.0])
    longest = 62

    @staticmethod
    def mixed() -> Lane:
        makes = (sentence, pair, lambda r: (image(int(r.integers(30, 60))),))
        sources = [
            source_of(corpus(make, seed=n), name=f"s{n}", weight=w, seed=n)
            for n, (make, w) in enumerate(zip(makes, TestMixtures.weights.tolist(), strict=True))
        ]
        return Lane(sources, Composer(96, VOCABULARY), lane=0, cursor=Cursor.start(3))

    def test_shares_are_kept_to_a_document(self) -> None:
        lane, shares = self.mixed(), self.weights / self.weights.sum()
        drawn = [np.zeros(3)]
        for _ in range(300):
            lane.next_row()
            drawn.append(np.array(lane.cursor().drawn, float))
        before = np.array(drawn)
        for rows in (1, 10, 100, 299):  # windows of that many rows, everywhere
            seen = before[rows:] - before[:-rows]
            off = seen - seen.sum(1, keepdims=True) * shares
            assert np.abs(off).max() <= 2 * self.longest  # one at each end of the window
        assert np.abs(before - before.sum(1, keepdims=True) * shares).max() <= self.longest
        assert before[-1].sum() > 10_000

    def test_rows_keep_them_to_the_look_ahead(self) -> None:
        lane, shares = self.mixed(), self.weights / self.weights.sum()
        found = np.zeros((300, 3))
        for row in found:
            for document in lane.next_row():
                row[document.ref.source] += scored_of(document.spans)
        ahead = LOOKAHEAD_ROWS * 96 + LOOKAHEAD * self.longest
        for rows in (50, 300):
            seen = np.array([found[n : n + rows].sum(0) for n in range(301 - rows)])
            assert np.abs(seen - seen.sum(1, keepdims=True) * shares).max() <= ahead
        assert np.abs(found.sum(0) / found.sum() - shares).max() < 0.02

    def test_of_one_source_all_comes_from_it(self) -> None:
        lane = fresh(*CASES["sentences"])
        assert {d.ref.source for _ in range(50) for d in lane.next_row()} == {0}


class TestBadRecords:
    """A run ends in one sentence where too many are bad, not where chance puts them together."""

    @staticmethod
    def run(chunks: list[Any], *, limit: float, lane: int = 0, lanes: int = 4) -> None:
        one = source_of(chunks, name="flowers", lanes=lanes, max_bad_fraction=limit)
        own = Lane([one], CLASSES, lane=lane, cursor=Cursor.start(1))
        for _ in range(2000):
            own.next_row()

    def chunks(self, bad: Callable[[int, int], bool], *, count: int = 40) -> list[Any]:
        good = (label(0), image(5))
        return [[BAD if bad(c, r) else good for r in range(10)] for c in range(count)]

    def test_all_bad(self) -> None:
        for limit in (0.05, 1.0):
            with pytest.raises(
                UserError, match=r"of flowers (can|that came so far cannot) be used"
            ):
                self.run(self.chunks(lambda c, r: True), limit=limit)

    @pytest.mark.parametrize("share", [0.08, 0.5])
    def test_too_many(self, share: float) -> None:
        random = np.random.default_rng(0)
        told = r"^\d+ of \d+ records of flowers that came so far cannot be used, more than"
        with pytest.raises(UserError, match=told + r" corpus.max_bad_fraction = 0.03: repair it"):
            self.run(self.chunks(lambda c, r: random.random() < share), limit=0.03)

    def test_too_many_for_chance(self) -> None:
        """Fewer in any epoch of the lane than the corpus may hold, but again and again."""
        random = np.random.default_rng(0)
        with pytest.raises(UserError, match=r"corpus\.max_bad_fraction = 0\.1"):
            self.run(self.chunks(lambda c, r: random.random() < 0.3, count=200), limit=0.1)

    def test_none_may_be(self) -> None:
        with pytest.raises(UserError, match="1 of "):
            self.run(self.chunks(lambda c, r: (c, r) == (3, 3)), limit=0.0, lanes=1)

    @pytest.mark.parametrize("lane", range(4))
    def test_as_many_as_may_be_whoever_meets_them(self, lane: int) -> None:
        random = np.random.default_rng(1)
        scattered = self.chunks(lambda c, r: random.random() < 0.05)
        assert 0.03 < np.mean([not record for chunk in scattered for record in chunk]) <= 0.0651
        self.run(scattered, limit=0.065, lane=lane)
        self.run(self.chunks(lambda c, r: c in (5, 23)), limit=0.05, lane=lane)
        self.run(self.chunks(lambda c, r: c == 1, count=4), limit=0.25, lane=lane)

    def test_one_sentence_where_nothing_makes_a_document(self) -> None:
        chunks = [[[text(1, 2, scored=False)], [text()]] for _ in range(4)]
        lane = Lane([source_of(chunks, name="pages")], WORDS, lane=0, cursor=Cursor.start(1))
        with pytest.raises(UserError, match="no record of pages makes a document of at most 40"):
            lane.next_row()
