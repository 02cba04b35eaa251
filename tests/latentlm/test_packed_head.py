"""The packed head computes what the head computes, and stands aside where it cannot."""

import pytest
import torch

from latentlm.diffusion.head import DiffusionHead
from latentlm.diffusion.packed_head import PackedHead, decoding_head
from latentlm.layers import SwiGLU
from latentlm.packed_linear import packed


def make_head(*, learned_norm: bool = False, depth: int = 3) -> DiffusionHead:
    torch.manual_seed(0)
    head = DiffusionHead(
        width=48,
        latent_width=6,
        depth=depth,
        ffn_width=80,
        norm_eps=1e-6,
        learned_norm=learned_norm,
    )
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


@pytest.mark.parametrize("learned_norm", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 64, 200])
@torch.inference_mode()
def test_it_is_the_same_function(learned_norm: bool, rows: int) -> None:
    head = make_head(learned_norm=learned_norm)
    packed = decoding_head(head)
    assert isinstance(packed, PackedHead)
    hidden, x, times = torch.randn(rows, 48), torch.randn(rows, 6), torch.tensor([999, 500, 1])
    embedding = head.embed_timesteps(times).unsqueeze(1)
    wanted = head.modulate(head.condition(hidden), embedding)
    found = packed.modulate(packed.condition(hidden), embedding)
    assert found.shape == wanted.shape
    for step in range(3):
        exact = head.denoise(x, wanted[step])
        assert exact.abs().max() > 0.5
        torch.testing.assert_close(
            packed.denoise(x, found[step]), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max())
        )


@torch.inference_mode()
def test_a_packed_module_is_the_module_and_leaves_it_alone() -> None:
    torch.manual_seed(0)
    feedforward = SwiGLU(width=48, ffn_width=80)
    x = torch.randn(3, 5, 48)
    wanted, names = feedforward(x), list(feedforward.state_dict())
    found = packed(feedforward)
    torch.testing.assert_close(found(x), wanted, rtol=1e-5, atol=1e-5)
    assert found is not feedforward
    assert list(feedforward.state_dict()) == names
    assert isinstance(feedforward.down, torch.nn.Linear)


def test_it_stands_aside_where_weights_are_not_whole_or_gradients_are_wanted() -> None:
    head = make_head()
    assert decoding_head(head) is head  # gradients are enabled
    with torch.inference_mode():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert decoding_head(head) is head
        assert decoding_head(make_head().to(torch.bfloat16)) is not None
        assert not isinstance(decoding_head(make_head().to(torch.bfloat16)), PackedHead)
        away = make_head()
        away.modulation.weight.data = torch.empty(0)  # as ZeRO-3 leaves it
        assert decoding_head(away) is away
