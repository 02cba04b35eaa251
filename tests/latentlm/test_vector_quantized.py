"""The VQ codec: the nearest code by brute force, the straight-through law, VQ-16's size."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentlm.codec.vector_quantized import (
    Codebook,
    MapAttention,
    VectorQuantizedCodec,
    codebook_use,
    codes_digest,
    count_codes,
)
from latentlm.randomness import RowNoise
from latentlm.settings import VectorQuantizedSettings

SMALL = VectorQuantizedSettings(
    image_size=16,
    codebook_size=64,
    code_width=8,
    latent_width=32,
    width=32,
    width_factors=(1, 1, 2),
    blocks=1,
)


def small_codec(seed: int = 0) -> VectorQuantizedCodec:
    return VectorQuantizedCodec(SMALL, generator=torch.Generator().manual_seed(seed))


def small_codebook() -> Codebook:
    codebook = Codebook(20, 5)
    nn.init.normal_(codebook.codes_VE, generator=torch.Generator().manual_seed(0))
    return codebook


def some_vectors() -> Tensor:
    return torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(1)) * 4


def some_signal(rows: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(rows, 3, 4, 4, generator=generator) * 2 - 1
    return F.interpolate(coarse, size=(16, 16), mode="bilinear")


def counted(settings: VectorQuantizedSettings) -> int:
    """Parameters of a VQGAN, from its description: convolutions k·k·a·b + b, norms 2 a."""
    factors, width = settings.width_factors, settings.width
    top = width * factors[-1]

    def convolution(a: int, b: int, kernel: int) -> int:
        return kernel * kernel * a * b + b

    def block(a: int, b: int) -> int:
        skip = convolution(a, b, 1) if a != b else 0
        return 2 * a + convolution(a, b, 3) + 2 * b + convolution(b, b, 3) + skip

    attention = 2 * top + 4 * convolution(top, top, 1)
    middle = 2 * block(top, top) + attention

    def side(steps: list[int], blocks: int) -> int:
        """Blocks from each width to the next, and a 3x3 convolution between two resolutions."""
        count = sum(block(a, b) + (blocks - 1) * block(b, b) for a, b in pairwise(steps))
        return count + middle + blocks * attention

    widths = [width * factor for factor in factors]
    resampling = sum(convolution(w, w, 3) for w in widths[:-1])
    upsampling = sum(convolution(w, w, 3) for w in widths[1:])
    z, code, channels = settings.latent_width, settings.code_width, settings.channels
    encoder = convolution(channels, width, 3) + side([width, *widths], settings.blocks)
    encoder += resampling + 2 * top + convolution(top, z, 3) + convolution(z, code, 1)
    decoder = convolution(code, z, 1) + convolution(z, top, 3)
    decoder += side([top, *reversed(widths)], settings.blocks + 1)
    decoder += upsampling + 2 * width + convolution(width, channels, 3)
    return encoder + decoder + settings.codebook_size * code


def test_vq_16_has_72_million_parameters() -> None:
    settings = VectorQuantizedSettings(image_size=256)
    with torch.device("meta"):
        codec = VectorQuantizedCodec(settings)
    count = sum(parameter.numel() for parameter in codec.parameters())
    assert count == counted(settings) == 71_883_403
    assert (codec.latent_count, codec.codebook_size) == (256, 16_384)
    assert sum(p.numel() for p in small_codec().parameters()) == counted(SMALL)


def test_the_nearest_code_is_the_nearest_of_all() -> None:
    codebook, vectors_BNE = small_codebook(), some_vectors()
    found_BN = codebook(vectors_BNE).ids_BN
    for b, row in enumerate(vectors_BNE):
        for n, vector in enumerate(row):
            unit = vector / vector.norm()
            distances = [
                float((unit - code / code.norm()).norm()) for code in codebook.codes_VE.detach()
            ]
            assert int(found_BN[b, n]) == min(range(20), key=distances.__getitem__)
    assert found_BN.dtype == torch.int64
    assert len(found_BN.unique()) > 5


def test_many_vectors_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    codebook, vectors_BNE = small_codebook(), some_vectors()
    whole_BN = codebook.nearest(vectors_BNE)
    monkeypatch.setattr("latentlm.codec.vector_quantized.ROWS_AT_ONCE", 4)
    assert torch.equal(codebook.nearest(vectors_BNE), whole_BN)


def test_lengths_of_vectors_and_codes_do_not_count() -> None:
    codebook, vectors_BNE = small_codebook(), some_vectors()
    ids_BN = codebook.nearest(vectors_BNE)
    codes_BNE = codebook.look_up(ids_BN)
    scales = torch.rand(3, 7, 1) * 100 + 1e-3
    assert torch.equal(codebook.nearest(vectors_BNE * scales), ids_BN)
    with torch.no_grad():
        codebook.codes_VE.mul_(torch.rand(20, 1) * 9 + 0.1)
    assert torch.equal(codebook.nearest(vectors_BNE), ids_BN)
    assert torch.allclose(codebook.look_up(ids_BN), codes_BNE)
    assert torch.allclose(codes_BNE.norm(dim=-1), torch.ones(3, 7))


def test_gradients_pass_straight_through() -> None:
    codebook = small_codebook()
    vectors_BNE, plain_BNE = (some_vectors().requires_grad_() for _ in range(2))
    weights_BNE = torch.randn(3, 7, 5)
    (codebook(vectors_BNE).codes_BNE * weights_BNE).sum().backward()
    (F.normalize(plain_BNE, dim=-1) * weights_BNE).sum().backward()
    assert vectors_BNE.grad is not None
    assert plain_BNE.grad is not None
    assert bool(plain_BNE.grad.any())
    assert torch.allclose(vectors_BNE.grad, plain_BNE.grad)
    assert codebook.codes_VE.grad is None


def test_the_terms_move_codes_and_encoder_apart() -> None:
    codebook, vectors_BNE = small_codebook(), some_vectors().requires_grad_()
    quantised = codebook(vectors_BNE)
    unit_BNE, codes_BNE = F.normalize(vectors_BNE, dim=-1), codebook.look_up(quantised.ids_BN)
    distance = float((unit_BNE - codes_BNE).square().sum().detach()) / (3 * 7 * 5)
    total, codebook_term, commitment = quantised.terms
    assert float(codebook_term.detach()) == pytest.approx(distance)
    assert float(commitment.detach()) == pytest.approx(distance)
    assert float(total.detach()) == pytest.approx(1.25 * distance)
    codebook_term.backward(retain_graph=True)
    assert vectors_BNE.grad is None
    assert codebook.codes_VE.grad is not None
    used_V = codebook.codes_VE.grad.any(-1)
    assert set(used_V.nonzero().flatten().tolist()) == set(quantised.ids_BN.unique().tolist())
    codebook.codes_VE.grad = None
    commitment.backward()
    assert codebook.codes_VE.grad is None
    assert vectors_BNE.grad is not None
    assert bool(vectors_BNE.grad.any())


def test_ids_decode_to_what_training_reconstructs() -> None:
    codec = small_codec()
    found = codec(some_signal())
    ids_BN = codec.encode_ids(some_signal())
    assert ids_BN.shape == (4, codec.latent_count)
    assert ids_BN.dtype == torch.int64
    assert torch.equal(ids_BN, found.ids_BN)
    assert found.signal_BCYX.shape == (4, 3, 16, 16)
    assert torch.allclose(codec.decode_ids(ids_BN), found.signal_BCYX, atol=1e-5)
    assert len(ids_BN.unique()) > 1


def test_ids_stand_in_raster_order() -> None:
    """With convolutions alone a corner is felt in its own corner, not in the opposite one."""
    codec = small_codec()
    for module in codec.modules():
        if isinstance(module, MapAttention):
            nn.init.zeros_(module.proj.weight)
        if isinstance(module, nn.GroupNorm):  # it sees the whole map
            module.forward = lambda x: x  # type: ignore[method-assign]
    signal = torch.zeros(1, 3, 16, 16)
    signal[:, :, :4, 12:] = torch.rand(3, 4, 4)
    calm_NE, corner_NE = codec._vectors(torch.zeros_like(signal))[0], codec._vectors(signal)[0]
    change_YX = (corner_NE - calm_NE).detach().norm(dim=-1).unflatten(0, (4, 4))
    assert float(change_YX[:2, 2:].sum()) > 5 * float(change_YX[2:, :2].sum())
    ids_BN = torch.zeros(1, 16, dtype=torch.int64)
    moved_BN = ids_BN.clone()
    moved_BN[0, 3] = 1
    change_CYX = (codec.decode_ids(moved_BN) - codec.decode_ids(ids_BN)).detach().abs()[0]
    assert float(change_CYX[:, :8, 8:].sum()) > 5 * float(change_CYX[:, 8:, :8].sum())


def test_attention_is_the_softmax_of_scaled_products() -> None:
    attention, x_BWYX = MapAttention(8), torch.randn(2, 8, 3, 4)
    q, k, v = attention.qkv(attention.norm(x_BWYX)).flatten(2).chunk(3, dim=1)
    shares = (torch.einsum("bwi,bwj->bij", q, k) / math.sqrt(8)).softmax(-1)
    y_BWYX = torch.einsum("bij,bwj->bwi", shares, v).unflatten(2, (3, 4))
    assert torch.allclose(attention(x_BWYX), x_BWYX + attention.proj(y_BWYX), atol=1e-5)


def test_a_codec_learns_images_it_can_hold() -> None:
    codec, signal = small_codec(), some_signal()
    optimizer = torch.optim.AdamW(codec.parameters(), lr=2e-3)
    for _ in range(40):
        found = codec(signal)
        loss = (found.signal_BCYX - signal).square().mean()
        optimizer.zero_grad()
        (loss + found.terms.total).backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in codec.parameters())
    again = codec.decode_ids(codec.encode_ids(signal))
    assert float((again - signal).detach().square().mean()) < 0.15 * float(signal.var())


def test_the_same_generator_gives_the_same_weights() -> None:
    first, second, other = small_codec().state_dict(), small_codec(), small_codec(seed=1)
    for name, weight in second.state_dict().items():
        assert torch.equal(weight, first[name]), name
    assert not torch.equal(other.last_weight, second.last_weight)
    assert torch.allclose(second.codebook.codes_VE.norm(dim=-1), torch.ones(64))


def test_use_of_the_codebook() -> None:
    ids = torch.tensor([[0, 0, 1], [1, 2, 2]])
    even_V = count_codes(ids, codebook_size=6)
    assert even_V.tolist() == [2, 2, 2, 0, 0, 0]
    assert codebook_use(even_V) == pytest.approx((0.5, 3.0))
    skewed_V = even_V + count_codes(torch.zeros(4, dtype=torch.int64), codebook_size=6)
    shares = (0.6, 0.2, 0.2)
    perplexity = math.exp(-sum(p * math.log(p) for p in shares))
    assert codebook_use(skewed_V) == pytest.approx((0.5, perplexity))
    with pytest.raises(ValueError, match="no ids were counted"):
        codebook_use(torch.zeros(6, dtype=torch.int64))


@torch.no_grad()
def test_as_a_codec_its_latents_are_the_ids() -> None:
    codec, signal = small_codec(), some_signal()
    posterior = codec.encode(signal)
    assert posterior.std_BNZ is None
    assert posterior.mean_BNZ.shape == (4, 16, codec.latent_width)
    noise = RowNoise(seed=0, ids_B=torch.arange(4))
    latents = codec.denormalise(codec.normalise(codec.draw(posterior, noise=noise)))
    assert torch.equal(latents[..., 0], codec.encode_ids(signal).float())
    assert torch.equal(codec.decode(latents), codec.decode_ids(codec.encode_ids(signal)))
    largest = torch.tensor([2.0**24 - 1])
    assert int(largest.long()) == 2**24 - 1


def test_the_digest_is_of_encoder_and_codebook() -> None:
    codec = small_codec()
    before = codes_digest(codec)
    assert before == codes_digest(small_codec())
    with torch.no_grad():
        codec.decoder[0].weight.add_(1)
        assert codes_digest(codec) == before
        codec.codebook.codes_VE[0].mul_(-1)
        moved = codes_digest(codec)
        codec.encoder[0].weight.add_(1)
    assert len({before, moved, codes_digest(codec)}) == 3


def test_wrong_ids_and_images_are_named() -> None:
    codec = small_codec()
    ids_BN = torch.zeros(1, 16, dtype=torch.int64)
    for wrong in (-1, 64):
        with pytest.raises(ValueError, match=rf"{wrong}.*this codebook has 0 to 63"):
            codec.decode_ids(ids_BN.index_fill(1, torch.tensor([5]), wrong))
    with pytest.raises(ValueError, match="integers from 0 to 63"):
        codec.decode_ids(ids_BN.float())
    with pytest.raises(ValueError, match=r"\(1, 15\).*decodes \(B, 16\)"):
        codec.decode_ids(ids_BN[:, :15])
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*built for \(3, 16, 16\)"):
        codec.encode_ids(torch.zeros(1, 3, 32, 32))
