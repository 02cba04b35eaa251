"""Draws of held-out images: always the same rows, each once, wherever they are read."""

from pathlib import Path

import numpy as np
import pytest

from latentlm_platform.corpora.splits import Split, open_splits
from latentlm_platform.errors import UserError
from latentlm_platform.evaluation.held_out import (
    Piece,
    deal,
    decoded_images,
    draw_rows,
    placed,
    read_images,
)
from making_corpora import corpus, write_class_folders


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """60 held-out images of 120 in 30 chunks, a few of which are no images."""
    root = tmp_path_factory.mktemp("corpus")
    write_class_folders(root, classes=3, images_a_class=40, size=8)
    for number in range(0, 40, 5):
        (root / "class-1" / f"{number:04d}.png").write_bytes(b"no image")
    settings = corpus(source=str(root), channels=1, held_out_fraction=0.5, layout="folder")
    return open_splits(settings, seed=0).held_out


def rows_of(pieces: list[Piece]) -> list[tuple[int, int, int]]:
    """(place in the draw, chunk, row), in order."""
    return sorted(
        (place, chunk, row)
        for chunk, rows, places in pieces
        for row, place in zip(rows.tolist(), places.tolist(), strict=True)
    )


def test_a_draw_is_always_the_same_rows_each_once_and_from_all_over(split: Split) -> None:
    drawn = rows_of(draw_rows(split, 40))
    assert drawn == rows_of(draw_rows(split, 40))
    assert [place for place, _, _ in drawn] == list(range(40))
    assert len({(chunk, row) for _, chunk, row in drawn}) == 40
    assert all(0 <= row < split.chunk_sizes[chunk] for _, chunk, row in drawn)
    assert len({chunk for _, chunk, _ in drawn}) >= 16
    assert len(rows_of(draw_rows(split, 1000))) == int(np.sum(split.chunk_sizes))


def test_halves_and_hands_share_out_every_row_evenly(split: Split) -> None:
    pieces = draw_rows(split, 40)
    first, second = placed(pieces, 0, 20), placed(pieces, 20, 40)
    assert rows_of(first) + rows_of(second) == rows_of(pieces)
    for hands in (1, 3, 7, 64):
        dealt = deal(pieces, hands)
        sizes = [len(rows_of(part)) for part in dealt]
        assert rows_of([piece for part in dealt for piece in part]) == rows_of(pieces)
        assert max(sizes) == -(-40 // hands)
        assert len(sizes) <= hands
    assert deal([], 2) == []


def test_what_is_read_does_not_depend_on_batches_and_lacks_what_is_bad(split: Split) -> None:
    pieces = draw_rows(split, 1000)
    images = read_images(split, 1000)
    good = len(images.places)
    assert 0 < len(rows_of(pieces)) - good <= 8
    assert images.places.tolist() == sorted(images.places.tolist())
    batches = list(decoded_images(split, pieces, size=7))
    assert [len(b.labels) for b in batches[:-1]] == [7] * (len(batches) - 1)
    order = np.argsort(np.concatenate([b.places for b in batches]))
    pixels = np.concatenate([b.pixels for b in batches])[order]
    assert np.array_equal(pixels, images.pixels)
    brightest = images.pixels.mean((2, 3)).argmax(1)  # class c is a bar at 8 c // 3
    assert np.array_equal(np.searchsorted([2, 5], brightest, side="right"), images.labels)


def test_a_split_without_images_is_one_sentence(tmp_path: Path) -> None:
    write_class_folders(tmp_path, classes=3, images_a_class=4, size=8)
    for path in tmp_path.glob("*/*.png"):
        path.write_bytes(b"no image")
    settings = corpus(source=str(tmp_path), channels=1, held_out_fraction=0.5, layout="folder")
    with pytest.raises(UserError, match=r"no held-out image of .* can be read"):
        read_images(open_splits(settings, seed=0).held_out, 5)
