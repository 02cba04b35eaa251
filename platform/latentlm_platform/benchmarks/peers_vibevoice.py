"""The peer of decoding: transformers' VibeVoice `generate`, with random weights and without codec.

Backbone, cache, guidance, scheduler and head loop are transformers' own. Taken out, which makes the
peer faster: the acoustic decoder gives its latents back as "audio", the semantic encoder and its
connector give nothing, and the projector of latents is one matrix, as ours. A last processor of
logits always chooses the latent token, since random weights would stop anywhere.

As shipped, `generate` runs three forward passes a step: the conditional one, VibeVoice's negative
branch, and a third for transformers' generic guidance of logits, which any guidance_scale but 1
turns on. `logits_guidance=False` spares the peer that one.

The negative branch starts from BOD alone, as shipped; ours repeats the prompt with PAD for its
words. For equal outputs the gate gives the peer the same prefix; the timing does not.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    VibeVoiceConfig,
    VibeVoiceForConditionalGeneration,
)

from latentlm.models import LatentLM
from latentlm.settings import HeadSettings, LatentLMSettings
from latentlm.vocabulary import special_ids
from latentlm_platform.benchmarks.peers_scheduler import NORM_EPS, new_scheduler
from latentlm_platform.benchmarks.weights import backbone_weights, draw_weights, head_weights


def settings_of(
    *, width: int, depth: int, heads: int, vocabulary: int, latent_width: int, latent_count: int
) -> LatentLMSettings:
    """Ours in VibeVoice's proportions: FFN 4 D, a head of 4 layers with FFN 3 D, Llama's rotary."""
    return LatentLMSettings(
        vocabulary=vocabulary,
        latent_count=latent_count,
        latent_width=latent_width,
        width=width,
        depth=depth,
        heads=heads,
        ffn_width=4 * width,
        rotary="llama",
        norm="learned",
        norm_eps=NORM_EPS,
        head=HeadSettings(depth=4, ffn_width=3 * width),
    )


class VibeVoicePeer:
    """A VibeVoice of the sizes of `settings`; `same_weights` gives ours the same weights."""

    def __init__(self, settings: LatentLMSettings, *, logits_guidance: bool) -> None:
        self.settings = settings
        self.special = special_ids(settings.vocabulary or 0)
        self.model: Any = VibeVoiceForConditionalGeneration(self._config()).eval()
        self._take_out_codec()
        draw_weights(self.model)
        self.scheduler = new_scheduler()
        self.choice = LogitsProcessorList([_AlwaysLatent(self.special.go_on)])
        if not logits_guidance:
            self.model._get_logits_processor = lambda *_, **__: self.choice

    def generate(
        self, ids_BT: Tensor, *, steps: int, scale: float, null_prefix: bool = False
    ) -> Tensor:
        """Latents (B, N, Z) after prompts that end with BOD. Noise: torch's global generator."""
        count, width = self.settings.latent_count or 0, self.settings.latent_width
        if null_prefix:
            self._prefix_negative_branch(ids_BT)
        try:
            with torch.inference_mode():
                rows = self.model.generate(
                    input_ids=ids_BT,
                    attention_mask=torch.ones_like(ids_BT),
                    noise_scheduler=self.scheduler,
                    num_diffusion_steps=steps,
                    guidance_scale=scale,
                    max_new_tokens=count,
                    do_sample=False,
                    logits_processor=self.choice,
                )
        finally:
            self.model.__dict__.pop("_prepare_negative_generation", None)
        return torch.stack(rows).reshape(len(ids_BT), count, width)

    def noises(self, batch: int, *, seed: int) -> list[Tensor]:
        """The initial noise (B, Z) that `generate` draws for each latent after this seed."""
        torch.manual_seed(seed)
        shape = (2 * batch, self.settings.latent_width)
        drawn = [torch.randn(*shape)[:batch] for _ in range(self.settings.latent_count or 0)]
        torch.manual_seed(seed)
        return drawn

    def same_weights(self) -> LatentLM:
        """A LatentLM that computes what this VibeVoice computes."""
        inner = self.model.model
        last_norm = inner.language_model.norm.weight.detach().clone()
        weights = {
            "token_embedding.weight": inner.language_model.embed_tokens.weight.detach().clone(),
            "latent_projection.weight": inner.multi_modal_projector.weight.detach().clone(),
            "softmax_head.weight": self.model.lm_head.weight.detach().clone(),
            "softmax_head.norm.weight": last_norm,
            "head.condition_norm.weight": last_norm,
            **backbone_weights(inner.language_model.layers),
            **head_weights(inner.diffusion_head),
        }
        ours = LatentLM(self.settings)
        ours.load_state_dict(weights)
        return ours.eval()

    def _config(self) -> VibeVoiceConfig:
        own = self.settings
        tiny_codec = {"num_filters": 2, "downsampling_ratios": [2], "depths": [1, 1]}
        codec = {"hidden_size": own.latent_width, **tiny_codec}
        return VibeVoiceConfig(
            text_config={
                "model_type": "qwen2",
                "hidden_size": own.width,
                "num_hidden_layers": own.depth,
                "num_attention_heads": own.heads,
                "num_key_value_heads": own.kv_heads or own.heads,
                "intermediate_size": own.ffn_width,
                "vocab_size": own.vocabulary,
                "rope_parameters": {"rope_type": "default", "rope_theta": own.rope_base},
                "rms_norm_eps": own.norm_eps,
                "tie_word_embeddings": False,
            },
            audio_config={"model_type": "vibevoice_acoustic_tokenizer", **codec},
            semantic_model_config={"model_type": "vibevoice_acoustic_tokenizer_encoder", **codec},
            diffusion_head_config={
                "num_hidden_layers": own.head.depth,
                "intermediate_size": own.head.ffn_width,
                "rms_norm_eps": own.norm_eps,
            },
            pad_token_id=self.special.pad,
            eos_token_id=self.special.end,
            audio_bos_token_id=self.special.bod,
            audio_eos_token_id=self.special.eod,
            audio_token_id=self.special.go_on,
        )

    def _take_out_codec(self) -> None:
        inner = self.model.model
        inner.audio_tower = _LatentsAsAudio()
        inner.semantic_tokenizer_encoder = _NoFeatures()
        inner.semantic_connector = _Nothing()
        inner.multi_modal_projector = nn.Linear(
            self.settings.latent_width, self.settings.width, bias=False
        )

    def _prefix_negative_branch(self, ids_BT: Tensor) -> None:
        shipped = type(self.model)._prepare_negative_generation

        def with_prefix(*arguments: Any, **named: Any) -> tuple[Tensor, dict[str, Any]]:
            bod_B1, kept = shipped(self.model, *arguments, **named)
            words_BT = torch.full_like(ids_BT[:, :-1], self.special.pad)
            self.model(
                input_ids=words_BT,
                attention_mask=torch.ones_like(words_BT),
                past_key_values=kept["past_key_values"],
                use_cache=True,
            )
            kept["attention_mask"] = torch.ones_like(ids_BT)
            return torch.cat((words_BT, bod_B1), dim=1), kept

        self.model._prepare_negative_generation = with_prefix


class _LatentsAsAudio(nn.Module):
    device = torch.device("cpu")

    def decode(self, latents: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(audio=latents, padding_cache=None)


class _NoFeatures(nn.Module):
    def forward(self, audio: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(latents=audio, padding_cache=None)


class _Nothing(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.new_zeros(())


class _AlwaysLatent(LogitsProcessor):
    """One finite score a row: argmax takes the latent token, whatever the model said."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = torch.full_like(scores, -torch.inf)
        chosen[:, self.token] = 0.0
        return chosen
