"""Whether a codec's posterior has kept its variance (§2.3, Figure 3), channel by channel.

Two failures share the word. *Variance collapse*, the paper's: the noise of a channel shrinks beside
what the channel says, q(z | x) becomes a point, and the codec a plain autoencoder. *Posterior
collapse*: μ hardly depends on x, the channel is all noise. Both are ratios of σ to the deviation of
μ, since a codec that scales μ up shrinks its noise as surely as one that predicts a small σ: the
σ-VAE fixes σ, and only β ‖μ‖² holds μ back.
"""

from typing import Any, NamedTuple

from torch import Tensor

from latentlm.codec.sigma import LatentMoments
from latentlm.settings import VarianceSettings

VARIANCE_COLLAPSED = 0.1  # σ below this share of std μ: noise under 1 % of the channel's power
POSTERIOR_COLLAPSED = 10.0  # σ above this multiple of std μ: what is said is under 1 %
LEAST_SIGNAL = 1e-6  # std μ of a channel that says nothing at all; keeps ratios finite


class ChannelVariance(NamedTuple):
    """For every channel, fp64 (Z,): √E σ², the deviation of μ over the corpus, and their ratio."""

    noise_std_Z: Tensor
    signal_std_Z: Tensor
    ratio_Z: Tensor

    @property
    def variance_collapsed_Z(self) -> Tensor:
        """bool (Z,): σ is below `VARIANCE_COLLAPSED` of std μ."""
        return self.ratio_Z < VARIANCE_COLLAPSED

    @property
    def posterior_collapsed_Z(self) -> Tensor:
        """bool (Z,): σ is above `POSTERIOR_COLLAPSED` times std μ."""
        return self.ratio_Z > POSTERIOR_COLLAPSED

    def metrics(self) -> dict[str, float]:
        """Flat metrics. noise_share: the noise's part of the variance of z, all channels summed."""
        noise_Z, ratio_Z = self.noise_std_Z, self.ratio_Z
        power, said = noise_Z.square().sum(), self.signal_std_Z.square().sum()
        return {
            "posterior_noise_std_min": float(noise_Z.min()),
            "posterior_noise_std_mean": float(noise_Z.mean()),
            "posterior_noise_std_max": float(noise_Z.max()),
            "posterior_noise_std_total": float(power.sqrt()),
            "noise_to_signal_min": float(ratio_Z.min()),
            "noise_to_signal_median": float(ratio_Z.median()),
            "noise_to_signal_max": float(ratio_Z.max()),
            "noise_share": float(power / (power + said).clamp(min=LEAST_SIGNAL**2)),
            "variance_collapsed_channels": float(self.variance_collapsed_Z.sum()),
            "posterior_collapsed_channels": float(self.posterior_collapsed_Z.sum()),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A line a channel, for a table."""
        return [
            {
                "channel": channel,
                "posterior_noise_std": float(self.noise_std_Z[channel]),
                "mu_std": float(self.signal_std_Z[channel]),
                "noise_to_signal": float(self.ratio_Z[channel]),
                "variance_collapsed": bool(self.variance_collapsed_Z[channel]),
                "posterior_collapsed": bool(self.posterior_collapsed_Z[channel]),
            }
            for channel in range(len(self.ratio_Z))
        ]


def channel_variance(moments: LatentMoments, *, variance: VarianceSettings) -> ChannelVariance:
    """The noise and the signal of each channel of a codec with this variance law."""
    noise_Z, signal_Z = moments.noise_std_Z(variance), moments.mean_std_Z()
    return ChannelVariance(noise_Z, signal_Z, noise_Z / signal_Z.clamp(min=LEAST_SIGNAL))
