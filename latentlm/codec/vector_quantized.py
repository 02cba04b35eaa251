"""The discrete image codec of VQ-MLLM (§3.2): LlamaGen's VQ-16, a VQGAN with unit-length codes.

In: signals (B, C, Y, X) in [-1, 1]. Out: N ids of the codebook for an image, in raster order, and
signals again. As a `Codec` its latents are the ids themselves, one number each: nothing is drawn
and nothing to normalise. In shapes, E is the width of a code, V the number of codes, W channels of
a map. With the default settings it has VQ-16's 71.9M parameters (the released codec is called 72M).
"""

import hashlib
import json
from dataclasses import asdict
from math import gcd
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from latentlm.codec.contract import LatentPosterior
from latentlm.randomness import RowNoise
from latentlm.settings import VectorQuantizedSettings

COMMITMENT_WEIGHT = 0.25
NORM_EPS = 1e-6
NORM_GROUPS = 32
ROWS_AT_ONCE = 4096  # 16384 codes take 256 MiB of similarities


class VQTerms(NamedTuple):
    """Scalars, means over positions and E: `total` = `codebook` + 0.25 · `commitment`.

    Both are ‖z - e‖² of unit vectors; `codebook` moves the codes alone, `commitment` the encoder.
    """

    total: Tensor
    codebook: Tensor
    commitment: Tensor


class Quantised(NamedTuple):
    """Vectors replaced by their nearest codes. The gradient of `codes_BNE` is that of the input."""

    codes_BNE: Tensor
    ids_BN: Tensor
    terms: VQTerms


class VQReconstruction(NamedTuple):
    """What a training step needs: signals with a straight-through gradient, terms, ids."""

    signal_BCYX: Tensor
    terms: VQTerms
    ids_BN: Tensor


class CodebookUse(NamedTuple):
    """How evenly codes are used: share of codes seen at all, and exp(entropy), from 1 to V."""

    used_fraction: float
    perplexity: float


class Codebook(nn.Module):
    """V codes of width E. Codes and inputs are compared after normalisation to length 1."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.codes_VE = nn.Parameter(torch.empty(size, width))

    def unit_codes_VE(self) -> Tensor:
        """The codes at length 1, as the decoder gets them."""
        return F.normalize(self.codes_VE.float(), dim=-1)

    def nearest(self, vectors_BNE: Tensor) -> Tensor:
        """Ids (B, N) of the nearest unit codes; of unit vectors that is the largest cosine."""
        unit_RE = F.normalize(vectors_BNE.detach().float(), dim=-1).flatten(0, 1)
        codes_EV = self.unit_codes_VE().detach().T
        with torch.autocast(unit_RE.device.type, enabled=False):  # bf16 would mistake neighbours
            ids = [(rows @ codes_EV).argmax(-1) for rows in unit_RE.split(ROWS_AT_ONCE)]
        ids_R = torch.cat(ids)
        return ids_R.unflatten(0, vectors_BNE.shape[:2])

    def look_up(self, ids_BN: Tensor) -> Tensor:
        """Unit codes (B, N, E); ValueError where an id is none of the codebook."""
        size = len(self.codes_VE)
        if ids_BN.is_floating_point() or ids_BN.is_complex():
            raise ValueError(f"the ids are {ids_BN.dtype}; give integers from 0 to {size - 1}")
        if ids_BN.numel():
            low, high = int(ids_BN.min()), int(ids_BN.max())
            if low < 0 or high >= size:
                raise ValueError(
                    f"the ids go from {low} to {high}, but this codebook has 0 to {size - 1}; use"
                    " the codec that the ids were made with, and no words of another vocabulary"
                )
        return self.unit_codes_VE()[ids_BN]

    def forward(self, vectors_BNE: Tensor) -> Quantised:
        """Nearest codes, with the straight-through gradient and the two terms."""
        unit_BNE = F.normalize(vectors_BNE.float(), dim=-1)
        ids_BN = self.nearest(vectors_BNE)
        codes_BNE = self.unit_codes_VE()[ids_BN]
        codebook = F.mse_loss(codes_BNE, unit_BNE.detach())
        commitment = F.mse_loss(unit_BNE, codes_BNE.detach())
        terms = VQTerms(codebook + COMMITMENT_WEIGHT * commitment, codebook, commitment)
        return Quantised(unit_BNE + (codes_BNE - unit_BNE).detach(), ids_BN, terms)


class ResidualBlock(nn.Module):
    """Twice norm, SiLU, 3x3 convolution; a 1x1 convolution beside them where the width changes."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = _activated_convolution(before, after)
        self.second = _activated_convolution(after, after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x_BWYX: Tensor) -> Tensor:
        return self.skip(x_BWYX) + self.second(self.first(x_BWYX))


class MapAttention(nn.Module):
    """One head of attention over all positions of a map, with a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x_BWYX: Tensor) -> Tensor:
        qkv_BNW = self.qkv(self.norm(x_BWYX)).flatten(2).transpose(1, 2)
        q_BNW, k_BNW, v_BNW = qkv_BNW.chunk(3, dim=-1)
        # a head axis: without it the fused kernels of torch are not chosen
        y_B1NW = F.scaled_dot_product_attention(q_BNW[:, None], k_BNW[:, None], v_BNW[:, None])
        return x_BWYX + self.proj(y_B1NW[:, 0].transpose(1, 2).unflatten(2, x_BWYX.shape[2:]))


class Halving(nn.Module):
    """A 3x3 convolution of stride 2, padded on the right and below alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x_BWYX: Tensor) -> Tensor:
        return self.convolution(F.pad(x_BWYX, (0, 1, 0, 1)))


class VectorQuantizedCodec(nn.Module):
    """The VQ codec. Weights are drawn from `generator`, by default torch's global one."""

    def __init__(
        self, settings: VectorQuantizedSettings, *, generator: Generator | None = None
    ) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = _encoder(settings)
        self.codebook = Codebook(settings.codebook_size, settings.code_width)
        self.decoder = _decoder(settings)
        _initialise(self, generator)

    @property
    def codebook_size(self) -> int:
        """V, the number of codes."""
        return self.settings.codebook_size

    @property
    def latent_count(self) -> int:
        """N, the ids of one image."""
        return self.settings.latent_count

    @property
    def latent_width(self) -> int:
        """1: a latent is the id of its code. (`settings.latent_width` is a map's inside.)"""
        return 1

    @property
    def last_weight(self) -> Tensor:
        """The weight nearest the pixels, where gradients of loss terms are compared."""
        return self.decoder[-1].get_parameter("weight")

    def encode_ids(self, signal_BCYX: Tensor) -> Tensor:
        """int64 ids (B, N) of signals in [-1, 1], row after row."""
        return self.codebook.nearest(self._vectors(signal_BCYX))

    def decode_ids(self, ids_BN: Tensor) -> Tensor:
        """Signals (B, C, Y, X) of ids, about [-1, 1] but not clamped."""
        if ids_BN.ndim != 2 or ids_BN.shape[1] != self.latent_count:
            raise ValueError(
                f"the ids have shape {tuple(ids_BN.shape)}, but this codec decodes"
                f" (B, {self.latent_count}); give the ids of whole images"
            )
        return self._decode(self.codebook.look_up(ids_BN))

    def encode(self, signal: Tensor) -> LatentPosterior:
        """Ids (B, N, 1) as fp32, which holds every integer up to 2²⁴."""
        return LatentPosterior(self.encode_ids(signal).float().unsqueeze(-1))

    def draw(self, posterior: LatentPosterior, *, noise: RowNoise) -> Tensor:
        """The ids themselves: a quantizing codec has no variance law."""
        return posterior.mean_BNZ

    def decode(self, latents_BNZ: Tensor) -> Tensor:
        """Signals (B, C, Y, X) of ids (B, N, 1) as numbers."""
        return self.decode_ids(latents_BNZ.squeeze(-1).round().long())

    def normalise(self, latents_BNZ: Tensor) -> Tensor:
        """The same: ids are names and have no scale."""
        return latents_BNZ

    def denormalise(self, latents_BNZ: Tensor) -> Tensor:
        """The same."""
        return latents_BNZ

    def forward(self, signal_BCYX: Tensor, *, noise: RowNoise | None = None) -> VQReconstruction:
        """Reconstruction, terms and ids of signals, for training; noise is not used."""
        codes_BNE, ids_BN, terms = self.codebook(self._vectors(signal_BCYX))
        return VQReconstruction(self._decode(codes_BNE), terms, ids_BN)

    def _vectors(self, signal_BCYX: Tensor) -> Tensor:
        """What the encoder says at each position, (B, N, E), before normalisation."""
        side = self.settings.image_size
        expected = (self.settings.channels, side, side)
        if tuple(signal_BCYX.shape[1:]) != expected:
            raise ValueError(
                f"the signal has (C, Y, X) = {tuple(signal_BCYX.shape[1:])}, but this codec was"
                f" built for {expected}; change corpus.channels and corpus.image_size, or the codec"
            )
        return self.encoder(signal_BCYX).flatten(2).transpose(1, 2)

    def _decode(self, codes_BNE: Tensor) -> Tensor:
        side = self.settings.image_size // self.settings.patch_size
        return self.decoder(codes_BNE.transpose(1, 2).unflatten(2, (side, side)))


def codes_digest(codec: VectorQuantizedCodec) -> str:
    """SHA-256 of all that ids depend on: encoder, codebook and settings, not the decoder."""
    digest = hashlib.sha256(json.dumps(asdict(codec.settings), sort_keys=True).encode())
    for part in (codec.encoder, codec.codebook):
        for name, weight in sorted(part.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def count_codes(ids: Tensor, *, codebook_size: int) -> Tensor:
    """int64 counts (V,) of ids of any shape; those of several batches or workers add up."""
    return torch.bincount(ids.flatten(), minlength=codebook_size)


def codebook_use(counts_V: Tensor) -> CodebookUse:
    """Use of a codebook from counts. Raises ValueError before anything was counted."""
    total = int(counts_V.sum())
    if not total:
        raise ValueError("no ids were counted; add count_codes(ids, codebook_size=…) first")
    share_V = counts_V.double() / total
    entropy = torch.special.entr(share_V).sum()
    return CodebookUse(float((counts_V > 0).double().mean()), float(entropy.exp()))


def _norm(width: int) -> nn.GroupNorm:
    """VQGAN's 32 groups, fewer where a narrow map cannot be cut into 32."""
    return nn.GroupNorm(gcd(NORM_GROUPS, width), width, eps=NORM_EPS)


def _activated_convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(_norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))


def _middle(width: int) -> list[nn.Module]:
    return [ResidualBlock(width, width), MapAttention(width), ResidualBlock(width, width)]


def _encoder(settings: VectorQuantizedSettings) -> nn.Sequential:
    """Signals → (B, E, Y', X'): blocks at each width, attention at the lowest resolution alone."""
    widths = [settings.width * factor for factor in settings.width_factors]
    layers: list[nn.Module] = [nn.Conv2d(settings.channels, settings.width, 3, padding=1)]
    before = settings.width
    for level, width in enumerate(widths, start=1):
        lowest = level == len(widths)
        for _ in range(settings.blocks):
            layers += [ResidualBlock(before, width), *([MapAttention(width)] if lowest else [])]
            before = width
        layers += _middle(width) if lowest else [Halving(width)]
    return nn.Sequential(
        *layers,
        _activated_convolution(widths[-1], settings.latent_width),
        nn.Conv2d(settings.latent_width, settings.code_width, 1),
    )


def _decoder(settings: VectorQuantizedSettings) -> nn.Sequential:
    """(B, E, Y', X') → signals: the encoder backwards, with one block more at each width."""
    widths = [settings.width * factor for factor in reversed(settings.width_factors)]
    before = widths[0]
    layers: list[nn.Module] = [
        nn.Conv2d(settings.code_width, settings.latent_width, 1),
        nn.Conv2d(settings.latent_width, before, 3, padding=1),
        *_middle(before),
    ]
    for level, width in enumerate(widths, start=1):
        for _ in range(settings.blocks + 1):
            layers.append(ResidualBlock(before, width))
            layers += [MapAttention(width)] if level == 1 else []
            before = width
        if level < len(widths):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)]
    # unpacked, so that the last layer is the convolution to pixels
    return nn.Sequential(*layers, *_activated_convolution(before, settings.channels))


def _initialise(codec: VectorQuantizedCodec, generator: Generator | None) -> None:
    """Convolutions by torch's own law, ±1/√(inputs of an output); codes of length 1."""
    for module in codec.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            bound = module.weight[0].numel() ** -0.5
            for parameter in (module.weight, module.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
    codes_VE = codec.codebook.codes_VE
    nn.init.uniform_(codes_VE, -1.0, 1.0, generator=generator)
    with torch.no_grad():
        codes_VE.copy_(F.normalize(codes_VE, dim=-1))
