"""The diffusion head: its start, its formula, its conditioning."""

import torch
import torch.nn.functional as F

from latentlm.diffusion.head import DiffusionHead, sinusoid

WIDTH, LATENT, FFN = 16, 5, 24


def make_head(*, depth: int = 2) -> DiffusionHead:
    torch.manual_seed(0)
    return DiffusionHead(
        width=WIDTH, latent_width=LATENT, depth=depth, ffn_width=FFN, norm_eps=1e-6
    )


def randomise(head: DiffusionHead) -> DiffusionHead:
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def test_head_starts_at_zero_with_identity_blocks_and_small_timestep_network() -> None:
    head = make_head()
    x, condition = torch.randn(7, LATENT), torch.randn(7, WIDTH)
    assert head(x, torch.arange(7), condition=condition).abs().max() == 0
    assert head.modulation.weight.abs().max() == 0
    assert 0.018 < head.timestep_network[0].weight.std() < 0.022
    torch.nn.init.normal_(head.output.weight)
    inside = F.rms_norm(head.noisy_projection(x), (WIDTH,), eps=1e-6)
    expected = inside @ head.output.weight.T  # every gate is 0: nothing but the projections acts
    torch.testing.assert_close(head(x, torch.arange(7), condition=condition), expected)


def test_head_is_its_formula() -> None:
    head = randomise(make_head(depth=2))
    x_t, timesteps, hidden = (
        torch.randn(3, LATENT),
        torch.tensor([0, 400, 999]),
        torch.randn(3, WIDTH),
    )

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    weights = dict(head.named_parameters())
    embedded = F.silu(sinusoid(timesteps) @ weights["timestep_network.0.weight"].T)
    embedded = embedded @ weights["timestep_network.2.weight"].T
    context = F.silu(norm(hidden) @ weights["condition_projection.weight"].T + embedded)
    parts = (context @ weights["modulation.weight"].T).split(WIDTH, dim=-1)
    x = x_t @ weights["noisy_projection.weight"].T
    for block in range(2):
        shift, scale, gate = parts[3 * block : 3 * block + 3]
        inner = norm(x) * (1 + scale) + shift
        left, right = weights[f"blocks.{block}.feedforward.gate_and_up.weight"].split(FFN)
        inner = F.silu(inner @ left.T) * (inner @ right.T)
        x = x + gate * (inner @ weights[f"blocks.{block}.feedforward.down.weight"].T)
    expected = (norm(x) * (1 + parts[7]) + parts[6]) @ weights["output.weight"].T
    found = head(x_t, timesteps, condition=head.condition(hidden))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_leading_dimensions_broadcast_like_single_rows() -> None:
    head = randomise(make_head())
    x_BNMZ, condition_BND = torch.randn(2, 3, 4, LATENT), torch.randn(2, 3, WIDTH)
    timesteps_BNM = torch.randint(0, 1000, (2, 3, 4))
    whole = head(x_BNMZ, timesteps_BNM, condition=condition_BND.unsqueeze(2))
    one = head(x_BNMZ[1, 2, 3], timesteps_BNM[1, 2, 3], condition=condition_BND[1, 2])
    torch.testing.assert_close(whole[1, 2, 3], one, rtol=1e-4, atol=1e-4)


def test_sinusoid_is_exact_and_tells_all_timesteps_apart_under_autocast() -> None:
    timesteps = torch.arange(1000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sinusoid(timesteps)
    frequencies = 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    angles = timesteps.double()[:, None] * frequencies
    expected = torch.cat((angles.cos(), angles.sin()), -1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    assert len(found.unique(dim=0)) == 1000
