"""The speech codec's loss (§3.3; weights of DAC) and its critics' loss, least squares (LSGAN).

In: signals and reconstructions (B, S), posteriors. Out: scalars. Every term is a mean over the
rows, so equal shards of a batch average to the batch; terms of several scales, critics or layers
are sums over those, as in DAC, whose weights are made for that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from latentlm.codec.contract import LatentPosterior
from latentlm.codec.mel import MultiScaleMel
from latentlm.codec.sigma import regulariser
from latentlm.codec.speech_critics import Judgement
from latentlm.settings import VarianceSettings

Critic = Callable[[Tensor], Judgement]


class SpeechCodecTerms(NamedTuple):
    """Scalars to log. `total` is what is minimised; the others are unweighted parts of it."""

    total: Tensor
    mel: Tensor
    waveform: Tensor
    regulariser: Tensor
    features: Tensor
    adversarial: Tensor


@dataclass(frozen=True, kw_only=True)
class SpeechCodecLoss:
    """15 mel + waveform_weight · |x̂ - x| + β · regulariser + 2 features + adversarial.

    The last two come from critics, from `adversarial_start_step` on and where their weight is
    not 0.
    """

    variance: VarianceSettings
    mel: MultiScaleMel
    beta: float
    mel_weight: float = 15.0
    waveform_weight: float = 0.0
    feature_weight: float = 2.0
    adversarial_weight: float = 1.0
    adversarial_start_step: int = 0

    def adversarial_at(self, step: int) -> bool:
        """Whether the critic takes part in this step."""
        weighed = self.adversarial_weight > 0 or self.feature_weight > 0
        return weighed and step >= self.adversarial_start_step

    def terms(
        self,
        signal: Tensor,
        reconstruction: Tensor,
        *,
        posterior: LatentPosterior,
        step: int,
        critic: Critic | None = None,
    ) -> SpeechCodecTerms:
        """The terms of a batch of equally long (B, S); `critic` where `adversarial_at(step)`."""
        features = adversarial = signal.new_zeros(())
        mel = self.mel(reconstruction, signal)
        waveform = (reconstruction.float() - signal.float()).abs().mean()
        prior = regulariser(posterior, variance=self.variance)
        if self.adversarial_at(step):
            if critic is None:
                raise ValueError("an adversarial step needs critic=")
            with torch.no_grad():
                real = critic(signal)
            rebuilt = critic(reconstruction)
            features = feature_matching(real=real, rebuilt=rebuilt)
            adversarial = generator_loss(rebuilt)
        total = self.mel_weight * mel + self.waveform_weight * waveform + self.beta * prior
        total = total + self.feature_weight * features + self.adversarial_weight * adversarial
        return SpeechCodecTerms(total, mel, waveform, prior, features, adversarial)


def generator_loss(rebuilt: Judgement) -> Tensor:
    """Σ over critics of the mean (1 - D(x̂))²."""
    return torch.stack([(1.0 - logits).square().mean() for logits in rebuilt.logits]).sum()


def critic_loss(critic: Critic, *, signal: Tensor, reconstruction: Tensor) -> Tensor:
    """Σ over critics of the means (1 - D(x))² + D(x̂)²; x̂ is detached."""
    real, rebuilt = critic(signal), critic(reconstruction.detach())
    pairs = zip(real.logits, rebuilt.logits, strict=True)
    losses = [(1.0 - one).square().mean() + other.square().mean() for one, other in pairs]
    return torch.stack(losses).sum()


def feature_matching(*, real: Judgement, rebuilt: Judgement) -> Tensor:
    """Σ over hidden layers of the mean |map(x̂) - map(x)|; no gradient through the real signal."""
    pairs = zip(rebuilt.maps, real.maps, strict=True)
    return torch.stack([(found - wanted.detach()).abs().mean() for found, wanted in pairs]).sum()
