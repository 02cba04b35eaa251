"""What every codec offers, whatever its modality (§2.3, "tokenizer" in the paper).

In: signals. Out: posteriors that can be cached, latents drawn from them, signals again.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from latentlm.randomness import RowNoise


class LatentPosterior(NamedTuple):
    """q(z | x) before the variance law: means, and deviations where the encoder predicts them."""

    mean_BNZ: Tensor
    std_BNZ: Tensor | None = None


class Codec(Protocol):
    """A frozen codec as the rest of the platform sees it."""

    @property
    def latent_width(self) -> int:
        """Z, the numbers in one latent."""

    def encode(self, signal: Tensor) -> LatentPosterior:
        """Signals → posteriors. Deterministic, so that posteriors can be cached."""

    def draw(self, posterior: LatentPosterior, *, noise: RowNoise) -> Tensor:
        """Latents (B, N, Z) by this codec's own variance law, row b from noise row b alone."""

    def decode(self, latents_BNZ: Tensor) -> Tensor:
        """Latents → signals. Unnormalised latents, as `draw` gives them."""

    def normalise(self, latents_BNZ: Tensor) -> Tensor:
        """Latents of zero mean and unit variance over the corpus; ValueError before statistics."""

    def denormalise(self, latents_BNZ: Tensor) -> Tensor:
        """The inverse of `normalise`."""
