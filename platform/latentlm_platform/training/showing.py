"""Pictures of what a model makes while it is trained, the same noise every time."""

from pathlib import Path

import torch

from latentlm.catalogue import AnyModel
from latentlm.generate import sample_latents
from latentlm.load import SignalCodec
from latentlm.media import encode_png, tile_images
from latentlm.randomness import RowNoise
from latentlm.signals import signal_to_pixels
from latentlm_platform.experiment.sections import Experiment

SHOWN_EPOCH = 2**31  # keys the noise apart from every training epoch's
SHOWN_CLASSES, SHOWN_ROWS = 10, 2


def show_samples(
    model: AnyModel, codec: SignalCodec, experiment: Experiment, *, path: Path | None
) -> None:
    """Generate some classes and write them to `path`; None on ranks that only compute.

    Every rank computes: under ZeRO-3 a forward pass needs them all.
    """
    classes = min(SHOWN_CLASSES, experiment.corpus.classes)
    device = model.device
    labels_B = torch.arange(classes, device=device).repeat(SHOWN_ROWS)
    ids_B = torch.arange(len(labels_B), device=device)
    sampler = experiment.sample
    latents_BNZ = sample_latents(
        model,
        labels_B,
        cfg_scales_B=torch.full(labels_B.shape, float(sampler.cfg_scale), device=device),
        sampler=sampler,
        noise=RowNoise(seed=experiment.model_seed, ids_B=ids_B, epochs_B=SHOWN_EPOCH),
        text=sampler.text,
    )
    if path is None:
        return
    signal_BCYX = codec.decode(codec.denormalise(latents_BNZ))
    picture = tile_images(signal_to_pixels(signal_BCYX).cpu().numpy(), columns=classes)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(encode_png(picture))
    partial.rename(path)
