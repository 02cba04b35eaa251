"""The codec that a model's latents are drawn with: the trained one, scaled to the corpus.

It may draw by another law than it was trained with: ours, the paper trains one a σ. Means do not
depend on the law, so that the codec and its latent cache are shared; what changes is the noise
around them and with it the scale of normalised latents.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from latentlm.codec.sigma import LatentMoments
from latentlm.codec.vector_quantized import VectorQuantizedCodec
from latentlm.load import load_codec, save_codec
from latentlm.settings import VarianceSettings


def drawing_codec(
    source: Path, *, variance: VarianceSettings | None, moments: LatentMoments, target: Path
) -> None:
    """A copy in `target` of the codec in `source`, scaled by the moments of its encoded means.

    `variance` is another law than the codec's own. Codes have no scale: they are copied as they
    are.
    """
    codec: Any = load_codec(source)
    if not isinstance(codec, VectorQuantizedCodec):
        if variance is not None:
            codec.settings = replace(codec.settings, variance=variance)
        law = codec.settings.variance
        codec.set_statistics(mean=moments.latent_mean(), std=moments.latent_std(law))
    save_codec(target, codec=codec)
