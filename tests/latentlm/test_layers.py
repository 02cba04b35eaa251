"""Shared layers against their formulas and laws."""

import torch
import torch.nn.functional as F

from latentlm.layers import RMSNorm, SwiGLU


def test_norm_is_computed_in_fp32_without_a_scale() -> None:
    norm = RMSNorm(eps=1e-6)
    x = torch.randn(5, 64, dtype=torch.bfloat16) * 100
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), exact.bfloat16(), rtol=0, atol=0)
    assert list(norm.parameters()) == []


def test_norm_adds_eps_inside_the_root() -> None:
    x = torch.full((1, 4), 1e-3)
    torch.testing.assert_close(RMSNorm(eps=1e-6)(x), x / (2e-6**0.5))


def test_swiglu_is_its_formula() -> None:
    layer = SwiGLU(width=8, ffn_width=12)
    gate, up = layer.gate_and_up.weight.split(12)
    x = torch.randn(3, 8)
    expected = (F.silu(x @ gate.T) * (x @ up.T)) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected)


def test_a_learned_scale_multiplies_and_starts_at_one() -> None:
    norm, plain = RMSNorm(eps=1e-6, learned_width=8), RMSNorm(eps=1e-6)
    x = torch.randn(3, 8)
    torch.testing.assert_close(norm(x), plain(x))
    with torch.no_grad():
        norm.weight.copy_(torch.arange(8.0))  # type: ignore[union-attr]
    torch.testing.assert_close(norm(x), plain(x) * torch.arange(8.0))
