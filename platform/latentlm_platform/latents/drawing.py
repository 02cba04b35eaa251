"""Latents drawn by another law than their codec was trained with: ours, the paper trains one a σ.

Means do not depend on the law, so that the codec and its latent cache are shared; what changes is
the noise around them and with it the scale of normalised latents.
"""

from dataclasses import replace
from pathlib import Path

from latentlm.codec.sigma import LatentMoments
from latentlm.load import load_codec, save_codec
from latentlm.settings import VarianceSettings


def redrawn_codec(
    source: Path, *, variance: VarianceSettings, moments: LatentMoments, target: Path
) -> None:
    """A copy in `target` of the codec in `source` that draws by `variance`.

    `moments` are those of the cached means.
    """
    codec = load_codec(source)
    codec.settings = replace(codec.settings, variance=variance)
    codec.set_statistics(mean=moments.latent_mean(), std=moments.latent_std(variance))
    save_codec(target, codec=codec)
