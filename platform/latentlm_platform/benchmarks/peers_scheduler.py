"""The peer of head sampling: diffusers' scheduler around VibeVoice's head, as VibeVoice runs it.

The loop is `sample_speech_tokens` of VibeVoice, in transformers `_sample_audio_latent`: both
branches in one batch, guidance outside the head, and the scheduler stepping the doubled batch.
"""

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor, nn
from transformers.models.vibevoice.configuration_vibevoice import VibeVoiceDiffusionHeadConfig
from transformers.models.vibevoice.modeling_vibevoice import VibeVoiceDiffusionHead

from latentlm_platform.benchmarks.weights import draw_weights

NORM_EPS = 1e-6


def new_scheduler() -> Any:
    """DPM-Solver++(2M) on the cosine schedule with v-prediction: the paper's sampler."""
    return DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )


def new_head(*, width: int, latent_width: int, depth: int, ffn_width: int) -> nn.Module:
    """VibeVoice's head with weights that a gate can see."""
    config = VibeVoiceDiffusionHeadConfig(
        hidden_size=width,
        latent_size=latent_width,
        num_hidden_layers=depth,
        intermediate_size=ffn_width,
        rms_norm_eps=NORM_EPS,
    )
    head = VibeVoiceDiffusionHead(config).eval()
    draw_weights(head)
    return head


@torch.inference_mode()
def sample(
    head: nn.Module,
    scheduler: Any,
    condition_PD: Tensor,
    noise_BZ: Tensor,
    *,
    steps: int,
    scale: float,
) -> Tensor:
    """Latents (B, Z): P = 2 B conditions, the null ones last."""
    scheduler.set_timesteps(num_inference_steps=steps)
    half = len(noise_BZ)
    x = torch.cat((noise_BZ, noise_BZ))
    for timestep in scheduler.timesteps:
        both = torch.cat((x[:half], x[:half]))
        prediction = head(both, timestep.repeat(len(both)).to(both), condition=condition_PD)
        conditional, null = prediction.split(half)
        mixed = null + scale * (conditional - null)
        x = scheduler.step(torch.cat((mixed, mixed)), timestep, x).prev_sample
    return x[:half]
