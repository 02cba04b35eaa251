"""The latent statistics that every continuous codec carries in its own weights (§2.3)."""

import torch
from torch import Tensor, nn


class LatentStatistics(nn.Module):
    """Shift and scale of latents, for a codec to inherit.

    `latent_mean` and `latent_std` are scalars over the corpus, part of the codec's own weights and
    NaN until `set_statistics`.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("latent_mean", torch.tensor(torch.nan))
        self.register_buffer("latent_std", torch.tensor(torch.nan))

    def set_statistics(self, *, mean: float, std: float) -> None:
        """Store the mean and deviation of z over the corpus (`LatentMoments` computes them)."""
        statistics = torch.tensor([mean, std], dtype=torch.float64)
        if not statistics.isfinite().all() or std <= 0:
            raise ValueError(
                f"latent mean {mean} and std {std} cannot normalise; give finite numbers, std > 0"
            )
        self.latent_mean.fill_(mean)
        self.latent_std.fill_(std)

    def normalise(self, latents_BNZ: Tensor) -> Tensor:
        """(z - mean) / std over the corpus."""
        self._require_statistics()
        return (latents_BNZ - self.latent_mean) / self.latent_std

    def denormalise(self, latents_BNZ: Tensor) -> Tensor:
        """z of normalised latents."""
        self._require_statistics()
        return latents_BNZ * self.latent_std + self.latent_mean

    def _require_statistics(self) -> None:
        if self.latent_std.isnan():
            raise ValueError(
                "the codec has no latent statistics; make one pass over the corpus and call"
                " set_statistics(mean=…, std=…) before normalising"
            )
