"""The causal Transformer: transformers' Llama as the reference, and the laws of causality."""

import pytest
import torch
import torch.nn.functional as F

from latentlm.backbone import Backbone

WIDTH, DEPTH, HEADS, FFN = 32, 3, 4, 48


def make_backbone(*, kv_heads: int = HEADS) -> Backbone:
    torch.manual_seed(0)
    return Backbone(
        width=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        kv_heads=kv_heads,
        ffn_width=FFN,
        rope_base=10000.0,
        norm_eps=1e-6,
    )


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_backbone_is_llama_with_unit_norms_and_other_frequencies(kv_heads: int) -> None:
    from transformers import LlamaConfig, LlamaModel

    backbone = make_backbone(kv_heads=kv_heads)
    config = LlamaConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        intermediate_size=FFN,
        vocab_size=2,
        rms_norm_eps=1e-6,
        attention_bias=False,
    )
    llama = LlamaModel(config).eval()
    head_width = WIDTH // HEADS
    llama.rotary_emb.inv_freq = 10000.0 ** -torch.linspace(0, 1, head_width // 2)
    # Llama rotates the two halves of a head, we rotate neighbours: permute rows of q and k
    order = torch.arange(head_width).view(head_width // 2, 2).T.flatten()
    with torch.no_grad():
        for ours, theirs in zip(backbone.layers, llama.layers, strict=True):
            sizes = [HEADS * head_width, kv_heads * head_width, kv_heads * head_width]
            q, k, v = ours.attention.query_key_value.weight.split(sizes)
            attention = theirs.self_attn
            attention.q_proj.weight.copy_(q.unflatten(0, (-1, head_width))[:, order].flatten(0, 1))
            attention.k_proj.weight.copy_(k.unflatten(0, (-1, head_width))[:, order].flatten(0, 1))
            attention.v_proj.weight.copy_(v)
            attention.o_proj.weight.copy_(ours.attention.output.weight)
            gate, up = ours.feedforward.gate_and_up.weight.split(FFN)
            theirs.mlp.gate_proj.weight.copy_(gate)
            theirs.mlp.up_proj.weight.copy_(up)
            theirs.mlp.down_proj.weight.copy_(ours.feedforward.down.weight)
        x = torch.randn(2, 11, WIDTH)
        expected = llama(inputs_embeds=x).last_hidden_state
        found = F.rms_norm(backbone(x), (WIDTH,), eps=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_state_depends_on_later_positions() -> None:
    backbone = make_backbone()
    x = torch.randn(1, 7, WIDTH, requires_grad=True)
    hidden = backbone(x)
    for position in range(7):
        (gradient,) = torch.autograd.grad(hidden[0, position].sum(), x, retain_graph=True)
        reach = gradient[0].abs().sum(-1)
        assert (reach[position + 1 :] == 0).all()
        assert (reach[: position + 1] > 0).all()


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("pieces", [[1] * 9, [4, 1, 3, 1], [9]])
def test_cached_states_are_the_states_of_the_whole(kv_heads: int, pieces: list[int]) -> None:
    backbone = make_backbone(kv_heads=kv_heads)
    x = torch.randn(2, 9, WIDTH)
    cache = backbone.new_cache(capacity=9, device=x.device)
    with torch.no_grad():
        parts = [backbone(piece, cache=cache) for piece in x.split(pieces, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), backbone(x), rtol=1e-5, atol=1e-5)
    assert cache.length == 9
