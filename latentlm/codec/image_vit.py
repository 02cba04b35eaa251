"""σ-VAE for images (§2.3, App. B): vision Transformers on both sides of N latents of width Z.

In: signals (B, C, Y, X) in [-1, 1]. Out: one latent per patch, and signals again. With width 768,
12 + 12 layers and patches of 16 pixels it has the paper's 172M parameters.
"""

import hashlib
import json
from dataclasses import asdict

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from latentlm.codec import sigma
from latentlm.codec.contract import LatentPosterior
from latentlm.codec.statistics import LatentStatistics
from latentlm.randomness import RowNoise
from latentlm.settings import DiagonalGaussianVariance, ImageCodecSettings, TransformerSettings

NORM_EPS = 1e-6
INITIAL_STD = 0.02
LOG_VARIANCE_RANGE = (-30.0, 20.0)  # latent diffusion's clamp: exp() neither vanishes nor overflows


class Attention(nn.Module):
    """Multi-head self-attention over all latents of an image."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        qkv_BN3HK = self.qkv(x_BND).unflatten(-1, (3, self.heads, -1))
        q_BHNK, k_BHNK, v_BHNK = qkv_BN3HK.permute(2, 0, 3, 1, 4)
        y_BHNK = F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK)
        return self.proj(y_BHNK.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm Transformer block with a GELU feed-forward."""

    def __init__(self, settings: TransformerSettings, *, layer: int) -> None:
        super().__init__()
        self.layer = layer
        width, ffn_width = settings.width, int(settings.width * settings.ffn_ratio)
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, settings.heads)
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp_in = nn.Linear(width, ffn_width)
        self.mlp_out = nn.Linear(ffn_width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.attn(self.attention_norm(x_BND))
        return x_BND + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x_BND))))


class Transformer(nn.Module):
    """Learned positions, blocks, final norm: the trunk that encoder and decoder share in form."""

    def __init__(self, settings: TransformerSettings, *, positions: int) -> None:
        super().__init__()
        self.position_ND = nn.Parameter(torch.zeros(positions, settings.width))
        self.blocks = nn.ModuleList(
            Block(settings, layer=layer) for layer in range(1, settings.depth + 1)
        )
        self.norm = nn.LayerNorm(settings.width, eps=NORM_EPS)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.position_ND
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.norm(x_BND)


class ImageEncoder(nn.Module):
    """Patches → Transformer → Z numbers a patch, 2 Z where deviations are predicted too."""

    def __init__(self, settings: ImageCodecSettings) -> None:
        super().__init__()
        width, patch = settings.encoder.width, settings.patch_size
        self.predicts_std = isinstance(settings.variance, DiagonalGaussianVariance)
        self.patches = nn.Conv2d(settings.channels, width, kernel_size=patch, stride=patch)
        self.trunk = Transformer(settings.encoder, positions=settings.latent_count)
        self.head = nn.Linear(width, settings.latent_width * (2 if self.predicts_std else 1))

    def forward(self, signal_BCYX: Tensor) -> LatentPosterior:
        x_BND = self.patches(signal_BCYX).flatten(2).transpose(1, 2)
        latents_BNZ = self.head(self.trunk(x_BND))
        if not self.predicts_std:
            return LatentPosterior(latents_BNZ)
        mean_BNZ, log_variance_BNZ = latents_BNZ.chunk(2, dim=-1)
        return LatentPosterior(mean_BNZ, (0.5 * log_variance_BNZ.clamp(*LOG_VARIANCE_RANGE)).exp())


class ImageDecoder(nn.Module):
    """Latents → Transformer → Linear, Tanh, Linear to the pixels of each patch."""

    def __init__(self, settings: ImageCodecSettings) -> None:
        super().__init__()
        width, patch = settings.decoder.width, settings.patch_size
        self.latents_per_side = settings.latents_per_side
        self.latents = nn.Linear(settings.latent_width, width)
        self.trunk = Transformer(settings.decoder, positions=settings.latent_count)
        self.head = nn.Linear(width, width)
        self.pixels = nn.Linear(width, settings.channels * patch**2)
        self.shuffle = nn.PixelShuffle(patch)

    def forward(self, latents_BNZ: Tensor) -> Tensor:
        x_BNP = self.pixels(self.head(self.trunk(self.latents(latents_BNZ))).tanh())
        side = self.latents_per_side
        return self.shuffle(x_BNP.transpose(1, 2).unflatten(2, (side, side)))


class ImageViTCodec(LatentStatistics):
    """The image codec. Weights are drawn from `generator`, by default torch's global one."""

    def __init__(self, settings: ImageCodecSettings, *, generator: Generator | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = ImageEncoder(settings)
        self.decoder = ImageDecoder(settings)
        _initialise(self, generator)

    @property
    def latent_width(self) -> int:
        return self.settings.latent_width

    @property
    def latent_count(self) -> int:
        return self.settings.latent_count

    @property
    def last_weight(self) -> Tensor:
        """The weight nearest the pixels, where gradients of loss terms are compared."""
        return self.decoder.pixels.weight

    def encode(self, signal: Tensor) -> LatentPosterior:
        """Posterior of signals (B, C, Y, X) in [-1, 1]; deterministic."""
        side = self.settings.image_size
        expected = (self.settings.channels, side, side)
        if tuple(signal.shape[1:]) != expected:
            raise ValueError(
                f"the signal has (C, Y, X) = {tuple(signal.shape[1:])}, but this codec was built"
                f" for {expected}; change corpus.channels and corpus.image_size, or the codec"
            )
        return self.encoder(signal)

    def draw(self, posterior: LatentPosterior, *, noise: RowNoise) -> Tensor:
        """Latents (B, N, Z) by the codec's own variance law (Eq. 5)."""
        return sigma.draw(posterior, variance=self.settings.variance, noise=noise)

    def decode(self, latents_BNZ: Tensor) -> Tensor:
        """Signals (B, C, Y, X), about [-1, 1] but not clamped."""
        expected = (self.latent_count, self.latent_width)
        if tuple(latents_BNZ.shape[1:]) != expected:
            raise ValueError(
                f"the latents have (N, Z) = {tuple(latents_BNZ.shape[1:])}, but this codec decodes"
                f" {expected}; use the codec that the latents or the model were made with"
            )
        return self.decoder(latents_BNZ)

    def forward(self, signal: Tensor, *, noise: RowNoise) -> tuple[Tensor, LatentPosterior, Tensor]:
        """(reconstruction, posterior, latents) of signals, for training."""
        posterior = self.encode(signal)
        latents_BNZ = self.draw(posterior, noise=noise)
        return self.decode(latents_BNZ), posterior, latents_BNZ


def encoder_parameters_digest(codec: ImageViTCodec) -> str:
    """SHA-256 of all that posteriors depend on: the encoder's weights and its settings.

    Neither the decoder nor the latent statistics nor the noise law count, so a latent cache
    outlives their change.
    """
    settings = codec.settings
    shape = {
        "image_size": settings.image_size,
        "channels": settings.channels,
        "patch_size": settings.patch_size,
        "latent_width": settings.latent_width,
        "encoder": asdict(settings.encoder),
        "predicts_std": codec.encoder.predicts_std,
    }
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for name, weight in sorted(codec.encoder.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _initialise(codec: ImageViTCodec, generator: Generator | None) -> None:
    """Truncated normal weights, zero biases; layer l's two residual outputs divided by √(2 l)."""
    for module in codec.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=INITIAL_STD, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Transformer):
            nn.init.trunc_normal_(module.position_ND, std=INITIAL_STD, generator=generator)
    with torch.no_grad():
        for module in codec.modules():
            if isinstance(module, Block):
                module.attn.proj.weight.div_((2 * module.layer) ** 0.5)
                module.mlp_out.weight.div_((2 * module.layer) ** 0.5)
