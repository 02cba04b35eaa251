"""Exposure bias of a model, measured by the evaluation's actors on held-out images."""

from typing import Any

import numpy as np

from latentlm.metrics.exposure_bias import ExposureMoments
from latentlm_platform.corpora.splits import Split
from latentlm_platform.evaluation.codec_scores import read_labelled
from latentlm_platform.experiment.sections import Experiment

IMAGES_AT_ONCE = 64


def score_exposure(
    experiment: Experiment, *, actors: list[Any], held_out: Split, cfg_scales: tuple[float, ...]
) -> dict[float, ExposureMoments]:
    """The moments at each CFG scale over `evaluate.exposure_bias_images` images or all there are.

    Empty where the setting is 0, or where the model draws all latents of an image at once.
    """
    wanted = experiment.evaluate.exposure_bias_images
    if not wanted or experiment.model.kind != "latent_lm":
        return {}
    from ray.util import ActorPool

    pixels, labels = read_labelled(held_out, wanted)
    batches = [
        {
            "pixels": pixels[start : start + IMAGES_AT_ONCE],
            "labels": labels[start : start + IMAGES_AT_ONCE],
            "ids": np.arange(start, min(start + IMAGES_AT_ONCE, len(pixels))),
            "cfg_scales": cfg_scales,
            "sampler": experiment.sample,
            "seed": experiment.seed,
        }
        for start in range(0, len(pixels), IMAGES_AT_ONCE)
    ]
    parts = ActorPool(actors).map(lambda actor, batch: actor.expose.remote(**batch), batches)
    merged: dict[float, ExposureMoments] = {}
    for part in parts:
        for scale, moments in part.items():
            if scale in merged:
                merged[scale].merge(moments)
            else:
                merged[scale] = moments
    return merged
