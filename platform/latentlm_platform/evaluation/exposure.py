"""Exposure bias by position, on held-out images (§2.3, Figure 6).

In: `evaluate.exposure_bias_images` held-out images. Out: exposure_bias, exposure_bias_last,
teacher_forced_error, each with its floor, and the table `exposure_bias.json` by position. A model
that draws all latents of an image at once has none.
"""

from collections.abc import Mapping, Sequence

import torch

from latentlm.generate import sample_latents
from latentlm.head_sampler import HeadSampler
from latentlm.metrics.exposure_bias import ExposureMoments, teacher_forced_latents
from latentlm.models import LatentLM
from latentlm.randomness import RowNoise
from latentlm.settings import SamplerSettings
from latentlm.signals import pixels_to_signal
from latentlm_platform.corpora.splits import Split
from latentlm_platform.evaluation.actor import EvaluatorActor
from latentlm_platform.evaluation.actor_pool import on_held_out
from latentlm_platform.evaluation.held_out import Images, Piece, decoded_images, draw_rows
from latentlm_platform.evaluation.task import (
    EVALUATION_EPOCH,
    Needs,
    Progress,
    Scores,
    Shown,
    Subject,
    Task,
)
from latentlm_platform.experiment.sections import Experiment

FORCED_EPOCH = EVALUATION_EPOCH + 1  # keys teacher-forced latents apart from free-running ones
IMAGES_AT_ONCE = 64
Moments = dict[float, ExposureMoments]


class Exposure(Task[Moments]):
    """How far generation drifts from teacher forcing."""

    needs = Needs(models=frozenset({"latent_lm"}))

    def applies(self, experiment: Experiment) -> bool:
        return super().applies(experiment) and experiment.evaluate.exposure_bias_images > 0

    def generate(self, subject: Subject, *, on_progress: Progress) -> Moments:
        """The moments at each CFG scale over as many images as are asked for, or there are."""
        experiment, split = subject.experiment, subject.splits.held_out
        parts = on_held_out(
            subject.actors,
            expose_rows,
            split,
            draw_rows(split, experiment.evaluate.exposure_bias_images),
            cfg_scales=subject.cfg_scales,
            sampler=experiment.sample,
            seed=experiment.seed,
        )
        return merged(parts)

    def score(self, subject: Subject, generated: Moments, *, shared: Mapping[str, float]) -> Scores:
        return Scores(by_scale={scale: found.metrics() for scale, found in generated.items()})

    def show(self, subject: Subject, generated: Moments) -> Shown:
        tables = {scale: {"exposure_bias.json": m.rows()} for scale, m in generated.items()}
        return Shown(tables=tables)


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all parts together."""
    together: Moments = {}
    for part in parts:
        for scale, moments in part.items():
            if scale in together:
                together[scale].merge(moments)
            else:
                together[scale] = moments
    return together


def expose_rows(
    actor: EvaluatorActor,
    *,
    split: Split,
    pieces: Sequence[Piece],
    cfg_scales: tuple[float, ...],
    sampler: SamplerSettings,
    seed: int,
) -> Moments:
    """On an actor: what these rows' good images add, at each scale."""
    batches = decoded_images(split, pieces, size=IMAGES_AT_ONCE)
    return merged(
        [
            expose_images(actor, images, cfg_scales=cfg_scales, sampler=sampler, seed=seed)
            for images in batches
        ]
    )


@torch.inference_mode()
def expose_images(
    actor: EvaluatorActor,
    images: Images,
    *,
    cfg_scales: tuple[float, ...],
    sampler: SamplerSettings,
    seed: int,
) -> Moments:
    """At each scale, real, teacher-forced and free-running latents of these images' labels."""
    model, codec, device = actor.model, actor.codec, actor.device
    assert isinstance(model, LatentLM)  # Exposure applies to no other
    ids_B = torch.from_numpy(images.places).to(device)
    labels_B = torch.from_numpy(images.labels).to(device)
    free, forced = (
        RowNoise(seed=seed, ids_B=ids_B, epochs_B=epoch)
        for epoch in (EVALUATION_EPOCH, FORCED_EPOCH)
    )
    signal = pixels_to_signal(torch.from_numpy(images.pixels)).to(device)
    real_BNZ = codec.normalise(codec.draw(codec.encode(signal), noise=forced))
    head = HeadSampler(model, sampler, compiled=False)
    found = {}
    for scale in cfg_scales:
        scales_B = torch.full(labels_B.shape, scale, device=device)
        moments = ExposureMoments.of_shape(*real_BNZ.shape[1:])
        moments.add(
            ids_B=ids_B,
            real_BNZ=real_BNZ,
            teacher_forced_BNZ=teacher_forced_latents(
                model, real_BNZ, labels_B, cfg_scales_B=scales_B, head=head, noise=forced
            ),
            free_running_BNZ=sample_latents(
                model, labels_B, cfg_scales_B=scales_B, sampler=sampler, noise=free
            ),
        )
        found[scale] = moments
    return found
