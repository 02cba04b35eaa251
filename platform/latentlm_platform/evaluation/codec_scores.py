"""What a trained codec is worth: reconstruction, and how it bears the noise on its latents."""

import json
from pathlib import Path

import torch
from torch import Tensor

from latentlm.codec.image_vit import ImageViTCodec
from latentlm.codec.sigma import LatentMoments
from latentlm.codec.vector_quantized import VectorQuantizedCodec, codebook_use, count_codes
from latentlm.load import load_codec
from latentlm.media import encode_png, tile_images
from latentlm.metrics.reconstruction import psnr, ssim
from latentlm.metrics.variance_collapse import channel_variance
from latentlm.signals import pixels_to_signal, signal_to_pixels
from latentlm_platform.corpora.splits import Split
from latentlm_platform.evaluation.held_out import read_images
from latentlm_platform.hardware import pick_device

SCORED_IMAGES = 512
SHOWN_IMAGES = 10
BATCH = 64
INJECTED_SIGMAS = (0.0, 0.25, 0.5, 1.0, 2.0)
COLLAPSED_STD = 0.1  # of μ over the corpus; a channel below it hardly says anything


def score_codec(codec_folder: Path, held_out: Split, *, folder: Path) -> None:
    """Score the codec saved in `codec_folder` with one thread, on this process's device.

    Writes into `folder` `scores.json` (flat metrics), `reconstructions.png`, and what the codec's
    kind has. Images are decoded here: it runs as a Ray task.
    """
    torch.set_num_threads(1)
    codec = load_codec(codec_folder).to(pick_device())
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(codec, VectorQuantizedCodec):
        score_codes(codec, held_out, folder=folder)
    else:
        score_latents(codec, held_out, folder=folder)


@torch.no_grad()
def score_codes(codec: VectorQuantizedCodec, held_out: Split, *, folder: Path) -> None:
    """Reconstruction from codes, and how much of the codebook is used, as `codebook_USE`."""
    images = read_images(held_out, SCORED_IMAGES).pixels
    device = next(codec.parameters()).device
    scores: dict[str, list[Tensor]] = {"reconstruction_psnr": [], "reconstruction_ssim": []}
    counts_V = torch.zeros(codec.codebook_size, dtype=torch.int64)
    shown: list[Tensor] = []
    for start in range(0, len(images), BATCH):
        signal = pixels_to_signal(torch.from_numpy(images[start : start + BATCH])).to(device)
        ids_BN = codec.encode_ids(signal)
        counts_V += count_codes(ids_BN.cpu(), codebook_size=codec.codebook_size)
        rebuilt = codec.decode_ids(ids_BN)
        scores["reconstruction_psnr"].append(psnr(rebuilt, signal))
        scores["reconstruction_ssim"].append(ssim(rebuilt, signal))
        shown = shown or [signal[:SHOWN_IMAGES], rebuilt[:SHOWN_IMAGES]]
    metrics = {name: float(torch.cat(values).mean()) for name, values in scores.items()}
    metrics |= {f"codebook_{n}": v for n, v in codebook_use(counts_V)._asdict().items()}
    (folder / "scores.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    _write_picture(shown, folder)


@torch.no_grad()
def score_latents(codec: ImageViTCodec, held_out: Split, *, folder: Path) -> None:
    """Write `scores.json` (flat metrics), `variance.json` (a line a channel), and a picture.

    reconstruction_psnr and reconstruction_ssim decode the posterior's mean, the ceiling of what a
    model can generate; reconstruction_psnr_sigma_S decode means with noise of deviation S added,
    the robustness that Figure 3 is about.
    """
    images = read_images(held_out, SCORED_IMAGES).pixels
    device = next(codec.parameters()).device
    moments = LatentMoments.of_width(codec.latent_width)
    scores: dict[str, list[Tensor]] = {}
    generator = torch.Generator().manual_seed(0)
    shown: list[Tensor] = []
    for start in range(0, len(images), BATCH):
        signal = pixels_to_signal(torch.from_numpy(images[start : start + BATCH])).to(device)
        posterior = codec.encode(signal)
        moments.add(posterior.mean_BNZ, posterior.std_BNZ)
        noise = torch.randn(posterior.mean_BNZ.shape, generator=generator).to(device)
        for sigma in INJECTED_SIGMAS:
            rebuilt = codec.decode(posterior.mean_BNZ + sigma * noise)
            scores.setdefault(f"reconstruction_psnr_sigma_{sigma:g}", []).append(
                psnr(rebuilt, signal)
            )
            if sigma == 0:
                scores.setdefault("reconstruction_ssim", []).append(ssim(rebuilt, signal))
                shown = shown or [signal[:SHOWN_IMAGES], rebuilt[:SHOWN_IMAGES]]
    metrics = {name: float(torch.cat(values).mean()) for name, values in scores.items()}
    metrics["reconstruction_psnr"] = metrics["reconstruction_psnr_sigma_0"]
    metrics |= latent_health(codec, moments)
    (folder / "scores.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    channels = channel_variance(moments, variance=codec.settings.variance).rows()
    (folder / "variance.json").write_text(json.dumps(channels, indent=1), encoding="utf-8")
    _write_picture(shown, folder)


def _write_picture(shown: list[Tensor], folder: Path) -> None:
    """Signals in one row, their reconstructions below."""
    pixels = signal_to_pixels(torch.cat(shown)).cpu().numpy()
    picture = encode_png(tile_images(pixels, columns=len(shown[0])))
    (folder / "reconstructions.png").write_bytes(picture)


def latent_health(
    codec: ImageViTCodec | VectorQuantizedCodec, moments: LatentMoments
) -> dict[str, float]:
    """Deviation of μ by channel, the noise beside it, and how many channels have collapsed.

    Nothing of codes, whose ids are no quantities.
    """
    if isinstance(codec, VectorQuantizedCodec):
        return {}
    variance = codec.settings.variance
    channels = moments.mean_std_Z()
    return {
        "latent_mu_std_min": float(channels.min()),
        "latent_mu_std_max": float(channels.max()),
        "latent_std": moments.latent_std(variance),
        "latent_mean": moments.latent_mean(),
        "collapsed_channels": float(len(moments.collapsed_channels(COLLAPSED_STD))),
        **channel_variance(moments, variance=variance).metrics(),
    } | {f"latent_mu_std_channel_{i}": float(std) for i, std in enumerate(channels)}
