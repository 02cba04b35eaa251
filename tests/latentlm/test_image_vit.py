"""The image codec against the paper's size, torch's own Transformer block, and its promises."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from latentlm.codec.image_vit import Block, ImageViTCodec, encoder_parameters_digest
from latentlm.randomness import RowNoise
from latentlm.settings import (
    DiagonalGaussianVariance,
    FixedVariance,
    HalfNormalVariance,
    ImageCodecSettings,
    TransformerSettings,
)

SMALL_SIDE = TransformerSettings(width=32, depth=2, heads=4)
SMALL = ImageCodecSettings(
    image_size=16,
    channels=3,
    patch_size=4,
    latent_width=6,
    encoder=SMALL_SIDE,
    decoder=replace(SMALL_SIDE, width=48),
    variance=HalfNormalVariance(c_sigma=0.1),
)


def small_codec(settings: ImageCodecSettings = SMALL, *, seed: int = 0) -> ImageViTCodec:
    return ImageViTCodec(settings, generator=torch.Generator().manual_seed(seed))


def some_signal(rows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(rows, 3, 16, 16, generator=generator) * 2 - 1


def test_the_papers_codec_has_172_million_parameters() -> None:
    side = TransformerSettings(width=768, depth=12, heads=12)
    settings = ImageCodecSettings(
        image_size=256,
        channels=3,
        patch_size=16,
        latent_width=16,
        encoder=side,
        decoder=side,
        variance=HalfNormalVariance(),
    )
    with torch.device("meta"):
        codec = ImageViTCodec(settings)
    count = sum(parameter.numel() for parameter in codec.parameters())
    assert count == pytest.approx(172e6, rel=0.005)


def test_a_block_is_torchs_pre_norm_block() -> None:
    block = Block(SMALL_SIDE, layer=1)
    peer = nn.TransformerEncoderLayer(
        32, 4, 128, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True,
        norm_first=True,
    )  # fmt: skip
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    pairs = [
        (peer.self_attn.in_proj_weight, block.attn.qkv.weight),
        (peer.self_attn.in_proj_bias, block.attn.qkv.bias),
        (peer.self_attn.out_proj.weight, block.attn.proj.weight),
        (peer.self_attn.out_proj.bias, block.attn.proj.bias),
        (peer.norm1.weight, block.attention_norm.weight),
        (peer.norm1.bias, block.attention_norm.bias),
        (peer.norm2.weight, block.mlp_norm.weight),
        (peer.norm2.bias, block.mlp_norm.bias),
        (peer.linear1.weight, block.mlp_in.weight),
        (peer.linear1.bias, block.mlp_in.bias),
        (peer.linear2.weight, block.mlp_out.weight),
        (peer.linear2.bias, block.mlp_out.bias),
    ]
    assert len(pairs) == len(list(block.parameters()))
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)
    x_BND = torch.randn(2, 9, 32)
    assert torch.allclose(block(x_BND), peer.train()(x_BND), atol=1e-5)


def test_initial_weights_follow_the_law() -> None:
    side = TransformerSettings(width=128, depth=4, heads=4)
    codec = small_codec(replace(SMALL, encoder=side, decoder=side))
    for trunk in (codec.encoder.trunk, codec.decoder.trunk):
        blocks = [module for module in trunk.modules() if isinstance(module, Block)]
        assert len(blocks) == 4
        for layer, block in enumerate(blocks, start=1):
            shrunk = 0.02 / (2 * layer) ** 0.5
            assert float(block.attn.proj.weight.detach().std()) == pytest.approx(shrunk, rel=0.05)
            assert float(block.mlp_out.weight.detach().std()) == pytest.approx(shrunk, rel=0.05)
            assert float(block.attn.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
            assert not block.attn.qkv.bias.any()
        assert float(trunk.position_ND.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_the_same_generator_gives_the_same_weights() -> None:
    first, second, other = small_codec(), small_codec(), small_codec(seed=1)
    for name, weight in first.state_dict().items():
        if not name.startswith("latent_"):
            assert torch.equal(weight, second.state_dict()[name]), name
    assert not torch.equal(first.last_weight, other.last_weight)


def test_latent_n_is_patch_n() -> None:
    """Without blocks nothing mixes positions, so patch n and latent n may touch only each other."""
    flat = replace(SMALL_SIDE, depth=0)
    codec = small_codec(replace(SMALL, encoder=flat, decoder=flat))
    signal, other = some_signal(1), some_signal(1)
    row, column = 1, 2
    other[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.5
    changed_N = (codec.encode(signal).mean_BNZ != codec.encode(other).mean_BNZ).any(-1)[0]
    assert changed_N.nonzero().flatten().tolist() == [4 * row + column]
    latents_BNZ = torch.zeros(1, 16, 6)
    moved_BNZ = latents_BNZ.clone()
    moved_BNZ[:, 4 * row + column] = 1.0
    changed_YX = (codec.decode(latents_BNZ) != codec.decode(moved_BNZ)).any(1)[0]
    expected_YX = torch.zeros(16, 16, dtype=torch.bool)
    expected_YX[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = True
    assert torch.equal(changed_YX, expected_YX)


@pytest.mark.parametrize("variance", [SMALL.variance, DiagonalGaussianVariance()])
def test_forward_is_encode_draw_decode(
    variance: HalfNormalVariance | DiagonalGaussianVariance,
) -> None:
    codec = small_codec(replace(SMALL, variance=variance))
    noise = RowNoise(seed=3, ids_B=torch.arange(2))
    reconstruction, posterior, latents_BNZ = codec(some_signal(), noise=noise)
    again = codec.encode(some_signal())
    assert torch.equal(posterior.mean_BNZ, again.mean_BNZ)
    assert (posterior.std_BNZ is None) == isinstance(variance, HalfNormalVariance)
    assert torch.equal(latents_BNZ, codec.draw(again, noise=noise))
    assert torch.equal(reconstruction, codec.decode(latents_BNZ))
    assert reconstruction.shape == (2, 3, 16, 16)
    assert latents_BNZ.shape == (2, codec.latent_count, codec.latent_width)
    reconstruction.square().mean().backward()
    assert all(parameter.grad is not None for parameter in codec.parameters())


def test_predicted_deviations_stay_positive_and_finite() -> None:
    codec = small_codec(replace(SMALL, variance=DiagonalGaussianVariance()))
    nn.init.normal_(codec.encoder.head.weight, std=1e3)
    std_BNZ = codec.encode(some_signal()).std_BNZ
    assert std_BNZ is not None
    assert bool((std_BNZ > 0).all())
    assert bool(std_BNZ.isfinite().all())


def test_a_codec_learns_images_it_can_hold() -> None:
    torch.manual_seed(0)
    codec = small_codec()
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(32, 3, 2, 2, generator=generator) * 2 - 1
    signal = nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")
    optimizer = torch.optim.AdamW(codec.parameters(), lr=3e-3)
    for step in range(60):
        noise = RowNoise(seed=0, ids_B=torch.arange(32), epochs_B=step)
        loss = (codec(signal, noise=noise)[0] - signal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3 * float(signal.var())


def test_normalising_needs_statistics_and_inverts() -> None:
    codec = small_codec()
    latents_BNZ = torch.randn(4, 16, 6) * 3 + 2
    for move in (codec.normalise, codec.denormalise):
        with pytest.raises(ValueError, match="no latent statistics"):
            move(latents_BNZ)
    codec.set_statistics(mean=float(latents_BNZ.mean()), std=float(latents_BNZ.std()))
    normal_BNZ = codec.normalise(latents_BNZ)
    assert float(normal_BNZ.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(normal_BNZ.std()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(codec.denormalise(normal_BNZ), latents_BNZ, atol=1e-5)
    other = small_codec(seed=1)
    other.load_state_dict(codec.state_dict())
    assert torch.equal(other.normalise(latents_BNZ), normal_BNZ)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_statistics_that_cannot_normalise_are_refused(mean: float, std: float) -> None:
    with pytest.raises(ValueError, match="cannot normalise"):
        small_codec().set_statistics(mean=mean, std=std)


def test_the_digest_is_of_the_encoder_alone() -> None:
    codec = small_codec()
    digest = encoder_parameters_digest(codec)
    assert digest == encoder_parameters_digest(small_codec())
    codec.set_statistics(mean=1.0, std=2.0)
    with torch.no_grad():
        codec.last_weight.add_(1.0)
    assert encoder_parameters_digest(codec) == digest
    other_law = small_codec(replace(SMALL, variance=FixedVariance(sigma=0.1)))
    assert encoder_parameters_digest(other_law) == digest
    with torch.no_grad():
        codec.encoder.trunk.position_ND[3, 4] += 1e-6
    assert encoder_parameters_digest(codec) != digest
    more_heads = small_codec(replace(SMALL, encoder=replace(SMALL_SIDE, heads=2)))
    assert encoder_parameters_digest(more_heads) != digest


def test_wrong_shapes_are_named() -> None:
    codec = small_codec()
    with pytest.raises(ValueError, match=r"\(1, 16, 16\).*built for \(3, 16, 16\)"):
        codec.encode(some_signal()[:, :1])
    with pytest.raises(ValueError, match=r"\(16, 5\).*decodes \(16, 6\)"):
        codec.decode(torch.zeros(1, 16, 5))
