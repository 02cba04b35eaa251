"""Held-out images through the codec without noise: the ceiling of what a model on it can generate.

In: the references. Out: reconstruction_psnr, reconstruction_ssim, and the Fréchet distance of
reconstructions, `frechet_*_reconstruction`. Computed once for all models on a codec.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from latentlm.metrics.frechet import frechet_distance
from latentlm.metrics.reconstruction import psnr, ssim
from latentlm.signals import pixels_to_signal, signal_to_pixels
from latentlm_platform.corpora.splits import Split
from latentlm_platform.evaluation.actor import DESCRIBED_AT_ONCE, EvaluatorActor
from latentlm_platform.evaluation.actor_pool import on_held_out
from latentlm_platform.evaluation.held_out import Piece, decoded_images, refuse_nothing
from latentlm_platform.evaluation.references import (
    Columns,
    drawn_halves,
    in_order,
    kept_columns,
    reference_folder,
    stacked,
)
from latentlm_platform.evaluation.task import Needs, Progress, Scores, Subject, Task


class Reconstruction(Task[Columns]):
    """How well the codec gives images back."""

    needs = Needs(references=True)

    def generate(self, subject: Subject, *, on_progress: Progress) -> Columns:
        """psnr, ssim [n] and rebuilt: features [n, F] of reconstructions."""
        split = subject.splits.held_out
        _, scored = drawn_halves(split, subject.experiment.evaluate.images)

        def rebuild() -> Columns:
            columns = in_order(on_held_out(subject.actors, rebuild_rows, split, scored))
            refuse_nothing(len(columns["psnr"]), split)
            return columns

        folder = reference_folder(subject.experiment, subject.splits, "rebuilt", subject.codec)
        return kept_columns(folder, rebuild)

    def score(self, subject: Subject, generated: Columns, *, shared: Mapping[str, float]) -> Scores:
        assert subject.references is not None  # it needs them
        reference = torch.from_numpy(subject.references.reference)
        rebuilt = torch.from_numpy(generated["rebuilt"])
        return Scores(
            {
                f"{subject.frechet}_reconstruction": frechet_distance(reference, rebuilt),
                "reconstruction_psnr": float(generated["psnr"].mean()),
                "reconstruction_ssim": float(generated["ssim"].mean()),
            }
        )


@torch.inference_mode()
def rebuild_rows(actor: EvaluatorActor, *, split: Split, pieces: Sequence[Piece]) -> Columns:
    """On an actor: these rows' good images through its codec."""
    places, features, scores = [np.empty(0, np.int64)], [], [np.empty((2, 0), np.float32)]
    for images in decoded_images(split, pieces, size=DESCRIBED_AT_ONCE):
        signal = pixels_to_signal(torch.from_numpy(images.pixels)).to(actor.device)
        decoded = actor.codec.decode(actor.codec.encode(signal).mean_BNZ)
        scores.append(torch.stack([psnr(decoded, signal), ssim(decoded, signal)]).cpu().numpy())
        features.append(actor.features(signal_to_pixels(decoded)))
        places.append(images.places)
    psnrs, ssims = np.concatenate(scores, axis=1)
    return {
        "places": np.concatenate(places),
        "rebuilt": stacked(features),
        "psnr": psnrs,
        "ssim": ssims,
    }
