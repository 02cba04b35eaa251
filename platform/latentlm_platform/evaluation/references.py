"""Features of real images: what generated ones are compared with, and the floor beside it.

Two disjoint sets of held-out images, of `evaluate.images` each where there are so many. Actors read
and describe them; what comes back is 5 KB of features an image, kept for every model of the corpus.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from latentlm_platform.artifacts import key_of
from latentlm_platform.corpora.splits import Split, Splits, corpus_digests, preprocessing
from latentlm_platform.errors import UserError
from latentlm_platform.evaluation.actor import DESCRIBED_AT_ONCE, EvaluatorActor
from latentlm_platform.evaluation.actor_pool import on_held_out
from latentlm_platform.evaluation.held_out import (
    Piece,
    decoded_images,
    draw_rows,
    placed,
    refuse_nothing,
)
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.home import artifacts_folder
from latentlm_platform.runs import exclusive

Columns = dict[str, np.ndarray]


class References(NamedTuple):
    """Features fp32 [n, F] of held-out images: the reference, and a set scored like a model's."""

    reference: np.ndarray
    real: np.ndarray


def drawn_halves(split: Split, images: int) -> tuple[list[Piece], list[Piece]]:
    """The rows of the reference, and as many others: those that are scored and reconstructed."""
    pieces = draw_rows(split, 2 * images)
    drawn = sum(len(piece.rows) for piece in pieces)
    half = drawn // 2
    if half < 2:
        raise UserError(
            f"{drawn} images of {split.index.source} are held out, an evaluation needs 4 or more;"
            " raise corpus.held_out_fraction"
        )
    return placed(pieces, 0, half), placed(pieces, half, 2 * half)


def shared_references(experiment: Experiment, splits: Splits, actors: Sequence[Any]) -> References:
    """The references of this corpus, described once for all models."""
    halves = drawn_halves(splits.held_out, experiment.evaluate.images)

    def describe() -> Columns:
        columns = {}
        for name, pieces in zip(References._fields, halves, strict=True):
            parts = on_held_out(actors, describe_rows, splits.held_out, pieces)
            columns[name] = in_order(parts)["features"]
            refuse_nothing(len(columns[name]), splits.held_out)
        return columns

    return References(**kept_columns(reference_folder(experiment, splits), describe))


def reference_folder(experiment: Experiment, splits: Splits, *about: Any) -> Path:
    """Where something computed from these held-out images, and from `about`, is kept."""
    settings = experiment.evaluate
    features = (settings.feature_extractor, settings.feature_size, settings.images)
    corpus = (corpus_digests(splits), preprocessing(experiment.corpus), splits.held_out.seed)
    chunks = experiment.corpus.chunk_records
    return artifacts_folder("reference") / key_of("reference", corpus, chunks, features, *about)


def kept_columns(folder: Path, compute: Callable[[], Columns]) -> Columns:
    """The arrays kept in `folder`, computed the first time."""
    with exclusive(folder):
        path = folder / "columns.npz"
        if path.exists():
            with np.load(path) as kept:
                return dict(kept)
        columns = compute()
        with path.with_suffix(".partial").open("wb") as file:
            np.savez(file, allow_pickle=False, **columns)
        path.with_suffix(".partial").rename(path)
        return columns


def in_order(parts: Sequence[Columns]) -> Columns:
    """What several actors found of rows of a draw, by the rows' places there."""
    parts = [part for part in parts if len(part["places"])] or parts[:1]
    merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(merged.pop("places"))
    return {name: column[order] for name, column in merged.items()}


@torch.inference_mode()
def describe_rows(actor: EvaluatorActor, *, split: Split, pieces: Sequence[Piece]) -> Columns:
    """On an actor: features of these rows' good images, and their places."""
    places, features = [np.empty(0, np.int64)], []
    for images in decoded_images(split, pieces, size=DESCRIBED_AT_ONCE):
        places.append(images.places)
        features.append(actor.features(torch.from_numpy(images.pixels)))
    return {"places": np.concatenate(places), "features": stacked(features)}


def stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of all parts; none where there are no parts."""
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
