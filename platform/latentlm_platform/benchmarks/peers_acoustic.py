"""The peer of streaming decoding: transformers' VibeVoice acoustic tokenizer."""

from typing import Any

import torch
from torch import Tensor
from transformers import VibeVoiceAcousticTokenizerConfig, VibeVoiceAcousticTokenizerModel

from latentlm.codec.speech_conv import SpeechConvCodec
from latentlm.settings import SpeechCodecSettings
from latentlm_platform.benchmarks.weights import draw_weights, speech_decoder_weights


class AcousticPeer:
    """A tokenizer of the sizes of `settings`; `same_weights` gives our codec its decoder."""

    def __init__(self, settings: SpeechCodecSettings) -> None:
        self.settings = settings
        config = VibeVoiceAcousticTokenizerConfig(
            hidden_size=settings.latent_width,
            kernel_size=settings.kernel,
            num_filters=settings.channels,
            downsampling_ratios=list(settings.strides),
            depths=list(settings.depths),
        )
        self.model: Any = VibeVoiceAcousticTokenizerModel(config).eval()
        draw_weights(self.model)

    @torch.inference_mode()
    def stream(self, latents_BNZ: Tensor) -> Tensor:
        """Signals (B, N · hop), decoded one latent at a time."""
        cache, pieces = None, []
        for latent_B1Z in latents_BNZ.split(1, dim=1):
            decoded = self.model.decode(latent_B1Z, padding_cache=cache, use_cache=True)
            cache = decoded.padding_cache
            pieces.append(decoded.audio)
        return torch.cat(pieces, dim=-1).squeeze(1)

    def same_weights(self) -> SpeechConvCodec:
        """Our codec with this decoder; its encoder stays as it was drawn."""
        ours = SpeechConvCodec(self.settings)
        ours.decoder.load_state_dict(speech_decoder_weights(self.model.decoder))
        return ours.eval()
