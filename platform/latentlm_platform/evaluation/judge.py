"""The judge: a classifier that learns a corpus's classes from its training images.

It says whether a generated image shows the class that was asked for. One judge serves all
evaluations of a corpus; it is trained in a Ray task of one CPU, where its chunks are decoded.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentlm.metrics.classifier import SmallImageClassifier, train_classifier
from latentlm_platform.artifacts import key_of
from latentlm_platform.corpora.records import Decoded
from latentlm_platform.corpora.splits import Split, Splits, corpus_digests, preprocessing
from latentlm_platform.corpora.spreading import RETRIES
from latentlm_platform.errors import UserError
from latentlm_platform.evaluation.held_out import decoded_images, draw_rows, refuse_nothing
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.home import artifacts_folder
from latentlm_platform.runs import exclusive

ORDER = 5  # keys the judge's order of chunks apart from other uses of the seed
JUDGE_BATCH = 128
JUDGE_BYTES = 2**30
JUDGED_IMAGES = 10_000
JUDGE_FILE = "judge.pt"


class Judge(NamedTuple):
    """A classifier of this corpus as plain data, and how often it is right on held-out images."""

    state: dict[str, Tensor]
    channels: int
    classes: int
    correct: int
    judged: int

    def build(self) -> SmallImageClassifier:
        """The classifier, ready to judge."""
        generator = torch.Generator().manual_seed(0)
        net = SmallImageClassifier(
            channels=self.channels, classes=self.classes, generator=generator
        )
        net.load_state_dict(self.state)
        return net.eval().requires_grad_(False)


def start_judge(experiment: Experiment, splits: Splits) -> Any:
    """A Ray reference to the judge of this corpus, trained once for all evaluations of it."""
    import ray

    settings, seed = experiment.evaluate, experiment.seed
    items, epochs = settings.classifier_items, settings.classifier_epochs
    about = (corpus_digests(splits), preprocessing(experiment.corpus))
    key = key_of("judge", about, experiment.corpus.chunk_records, seed, items, epochs, ORDER)
    folder = artifacts_folder("judge") / key
    if (judge := read_judge(folder)) is not None:
        return ray.put(judge)
    task = ray.remote(shared_judge).options(
        num_cpus=1, scheduling_strategy="DEFAULT", max_retries=RETRIES
    )
    return task.remote(folder, splits, epochs=epochs, items=items, seed=seed)


def shared_judge(folder: Path, splits: Splits, *, epochs: int, items: int, seed: int) -> Judge:
    """The judge kept in `folder`, trained and examined there the first time."""
    with exclusive(folder):
        if (judge := read_judge(folder)) is not None:
            return judge
        judge = train_judge(splits, epochs=epochs, items=items, seed=seed)
        path = folder / JUDGE_FILE
        torch.save(judge._asdict(), path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
        return judge


def read_judge(folder: Path) -> Judge | None:
    """The judge kept in `folder`, or None."""
    path = folder / JUDGE_FILE
    return Judge(**torch.load(path, weights_only=True)) if path.exists() else None


def train_judge(splits: Splits, *, epochs: int, items: int, seed: int) -> Judge:
    """Learn the corpus's classes from up to `items` training images, one thread."""
    torch.set_num_threads(1)
    split, corpus = splits.train, splits.train.corpus
    items = min(items, int(np.sum(split.chunk_sizes)))
    batch = min(JUDGE_BATCH, items)
    steps = items // batch
    net = train_classifier(
        judge_batches(split, epochs=epochs, steps=steps, batch=batch, seed=seed),
        channels=corpus.channels,
        classes=corpus.classes,
        steps_total=epochs * steps,
        generator=torch.Generator().manual_seed(seed),
    )
    correct, judged = _examine(net, splits.held_out)
    return Judge(net.state_dict(), corpus.channels, corpus.classes, correct, judged)


def judge_batches(
    split: Split, *, epochs: int, steps: int, batch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of uint8 images (B, C, Y, X) and labels: `steps` of them, `epochs` times over.

    Each holds `batch` images, whatever is bad. As much as fits a gigabyte is decoded once and
    shown `epochs` times, shuffled, before what comes next.
    """
    corpus, images = split.corpus, _training_images(split, seed=seed)
    shuffling = torch.Generator().manual_seed(seed)
    shape = (corpus.image_size, corpus.image_size, corpus.channels)
    together = max(1, JUDGE_BYTES // (batch * int(np.prod(shape))))
    for first in range(0, steps, together):
        count = batch * min(together, steps - first)
        pixels, labels = np.empty((count, *shape), np.uint8), np.empty(count, np.int64)
        for place in range(count):
            image = next(images)
            pixels[place], labels[place] = image.pixels, image.label
        pixels_BCYX, labels_B = torch.from_numpy(pixels).movedim(-1, 1), torch.from_numpy(labels)
        for _ in range(epochs):
            for some in torch.randperm(count, generator=shuffling).split(batch):
                yield pixels_BCYX[some], labels_B[some]


def _training_images(split: Split, *, seed: int) -> Iterator[Decoded]:
    """Good images chunk by chunk, for ever: where bad ones leave too few, the first come again."""
    order = np.random.default_rng([seed, ORDER]).permutation(len(split.chunk_sizes)).tolist()
    good = True
    while good:
        good = False
        for chunk in order:
            for signal in split.decode_chunk(chunk):
                if isinstance(signal, Decoded):
                    good = True
                    yield signal
    raise UserError(f"no image of {split.index.source} can be read", exit_code=1)


def _examine(net: SmallImageClassifier, held_out: Split) -> tuple[int, int]:
    """How many held-out images it names rightly, and of how many."""
    correct = judged = 0
    with torch.inference_mode():
        for images in decoded_images(
            held_out, draw_rows(held_out, JUDGED_IMAGES), size=JUDGE_BATCH
        ):
            said = net(torch.from_numpy(images.pixels).movedim(-1, 1)).argmax(1)
            correct += int((said.numpy() == images.labels).sum())
            judged += len(images.labels)
    refuse_nothing(judged, held_out)
    return correct, judged
