"""The judge: batches that are the same for a seed whatever is bad, and a classifier that learns."""

from pathlib import Path

import numpy as np
import pytest
import torch

from latentlm_platform.corpora.splits import Splits, open_splits
from latentlm_platform.errors import UserError
from latentlm_platform.evaluation import judge as judging
from latentlm_platform.evaluation.judge import judge_batches, shared_judge, train_judge
from making_corpora import corpus, write_class_folders

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def splits_of(root: Path, *, bad: int = 0, images_a_class: int = 24) -> Splits:
    write_class_folders(root, classes=3, images_a_class=images_a_class, size=8)
    for path in sorted(root.glob("*/*.png"))[:bad]:
        path.write_bytes(b"no image")
    settings = corpus(source=str(root), channels=1, held_out_fraction=0.25, layout="folder")
    return open_splits(settings, seed=0)


def batches(splits: Splits, *, steps: int, seed: int = 0, epochs: int = 2) -> Batches:
    return list(judge_batches(splits.train, epochs=epochs, steps=steps, batch=6, seed=seed))


def images(found: Batches) -> list[bytes]:
    return sorted(image.numpy().tobytes() for pixels, _ in found for image in pixels)


def same(one: Batches, other: Batches) -> bool:
    return all(
        torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_batches_follow_from_the_seed_and_keep_one_size(tmp_path: Path) -> None:
    splits = splits_of(tmp_path)
    found = batches(splits, steps=5)
    assert same(found, batches(splits, steps=5))
    assert not same(found, batches(splits, steps=5, seed=1))
    assert [tuple(pixels.shape) for pixels, _ in found] == [(6, 1, 8, 8)] * 10
    first, second = images(found[:5]), images(found[5:])
    assert first == second  # an epoch shows the same images
    assert len(set(first)) == 30  # each once
    assert not same(found[:5], found[5:])  # in another order


def test_a_part_that_fits_is_shown_before_the_next_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = splits_of(tmp_path)
    whole = images(batches(splits, steps=5, epochs=1))
    monkeypatch.setattr(judging, "JUDGE_BYTES", 2 * 6 * 8 * 8)
    found = batches(splits, steps=5)
    assert images(found[0:2]) == images(found[2:4])
    assert images(found[4:6]) == images(found[6:8])
    assert images(found[8:9]) == images(found[9:10])
    assert sorted(images(found[0:2] + found[4:6] + found[8:9])) == whole


def test_bad_records_are_skipped_and_good_ones_fill_their_place(tmp_path: Path) -> None:
    splits = splits_of(tmp_path, bad=30)
    records = int(np.sum(splits.train.chunk_sizes))
    found = batches(splits, steps=records // 6, epochs=1)
    assert [len(labels) for _, labels in found] == [6] * (records // 6)
    distinct = len(set(images(found)))
    assert records - 30 <= distinct < records
    assert set(torch.cat([labels for _, labels in found]).tolist()) == {1, 2}


def test_a_corpus_without_one_good_image_is_one_sentence(tmp_path: Path) -> None:
    splits = splits_of(tmp_path, bad=72)
    with pytest.raises(UserError, match=r"no image of .* can be read"):
        batches(splits, steps=1)


def test_a_judge_learns_the_classes_and_is_kept(tmp_path: Path) -> None:
    splits = splits_of(tmp_path / "corpus", images_a_class=80)
    judge = train_judge(splits, epochs=8, items=180, seed=0)
    assert judge.judged == int(np.sum(splits.held_out.chunk_sizes)) == 60
    assert judge.correct >= 45  # a third by chance
    again = train_judge(splits, epochs=8, items=180, seed=0)
    assert all(torch.equal(value, again.state[name]) for name, value in judge.state.items())
    kept = shared_judge(tmp_path / "kept", splits, epochs=8, items=180, seed=0)
    found = shared_judge(tmp_path / "kept", splits, epochs=1, items=6, seed=9)  # only read
    assert (found.correct, found.judged) == (kept.correct, kept.judged)
    assert not found.build().training
