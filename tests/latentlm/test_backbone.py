"""The backbone: against Llama, causality, key-value cache = none, packed = unpacked."""

import dataclasses
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from latentlm.backbone import Backbone
from latentlm.settings import HeadSettings, LatentLMSettings

LLAMA = LatentLMSettings(
    classes=1,
    latent_count=1,
    latent_width=1,
    width=32,
    depth=3,
    heads=4,
    kv_heads=2,
    ffn_width=48,
    rotary="llama",
    norm="learned",
    head=HeadSettings(ffn_width=1),
)
OFFICIAL = dataclasses.replace(LLAMA, rotary="interleaved", norm="weightless")
CASES = [
    pytest.param(dataclasses.replace(base, kv_heads=kv), id=f"{name}-{kind}")
    for name, base in (("llama", LLAMA), ("official", OFFICIAL))
    for kind, kv in (("mha", None), ("gqa", 2), ("mqa", 1))
]


def make_backbone(settings: LatentLMSettings) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(settings).eval()
    for parameter in backbone.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return backbone


def embeddings(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, length, 32, generator=torch.Generator().manual_seed(1))


def llama_of(backbone: Backbone) -> LlamaModel:
    """transformers' model with our weights; its last norm is made a no-op by our comparison."""
    settings = backbone.settings
    config: Any = LlamaConfig(
        hidden_size=settings.width,
        intermediate_size=settings.ffn_width,
        num_hidden_layers=settings.depth,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads or settings.heads,
        rms_norm_eps=settings.norm_eps,
        vocab_size=8,
    )
    llama = LlamaModel(config).eval()
    k = settings.width // settings.heads
    sizes = [settings.heads * k, *[(settings.kv_heads or settings.heads) * k] * 2]
    with torch.no_grad():
        for theirs, ours in zip(llama.layers, backbone.layers, strict=True):
            q, key, value = ours.attention.query_key_value.weight.split(sizes)
            gate, up = ours.feedforward.gate_and_up.weight.chunk(2)
            attention, mlp = theirs.self_attn, theirs.mlp
            pairs = (
                (attention.q_proj.weight, q),
                (attention.k_proj.weight, key),
                (attention.v_proj.weight, value),
                (attention.o_proj.weight, ours.attention.output.weight),
                (mlp.gate_proj.weight, gate),
                (mlp.up_proj.weight, up),
                (mlp.down_proj.weight, ours.feedforward.down.weight),
                (theirs.input_layernorm.weight, ours.attention_norm.weight),
                (theirs.post_attention_layernorm.weight, ours.feedforward_norm.weight),
            )
            for target, source in pairs:
                target.copy_(source)
    return llama


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_in_the_llama_setting_it_is_transformers_llama(kv_heads: int | None) -> None:
    backbone = make_backbone(dataclasses.replace(LLAMA, kv_heads=kv_heads))
    x = embeddings(2, 9)
    with torch.no_grad():
        theirs = llama_of(backbone)(inputs_embeds=x).last_hidden_state
        ours = torch.nn.functional.rms_norm(backbone(x), (32,), eps=LLAMA.norm_eps)
        assert (ours - theirs).abs().max() < 1e-5
        official = make_backbone(dataclasses.replace(OFFICIAL, kv_heads=kv_heads))
        other = torch.nn.functional.rms_norm(official(x), (32,), eps=LLAMA.norm_eps)
        assert (other - theirs).abs().max() > 1e-2  # the comparison can fail


@pytest.mark.parametrize("settings", CASES)
def test_no_output_depends_on_a_later_input(settings: LatentLMSettings) -> None:
    backbone = make_backbone(settings)
    x = embeddings(1, 6).requires_grad_()
    out = backbone(x)
    for position in range(6):
        (gradient,) = torch.autograd.grad(out[0, position].sum(), x, retain_graph=True)
        reach = gradient[0].abs().sum(-1)
        assert (reach[position + 1 :] == 0).all()
        assert (reach[: position + 1] > 0).all()


@pytest.mark.parametrize("settings", CASES)
@pytest.mark.parametrize("chunks", [(1,) * 8, (5, 3), (3, 1, 4), (8,)])
def test_cached_is_uncached(settings: LatentLMSettings, chunks: tuple[int, ...]) -> None:
    backbone = make_backbone(settings)
    x = embeddings(3, 8)
    with torch.no_grad():
        whole = backbone(x)
        cache = backbone.new_cache(capacity=8, device=x.device)
        parts = [backbone.extend(part, cache=cache) for part in x.split(chunks, dim=1)]
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-5
    with pytest.raises(ValueError, match="position 9 does not fit a cache of 8"):
        backbone.extend(x[:, :1], cache=cache)


@pytest.mark.parametrize("settings", CASES)
def test_rows_flush_right_are_rows_alone(settings: LatentLMSettings) -> None:
    backbone = make_backbone(settings)
    x, padding = embeddings(3, 8), torch.tensor([0, 3, 5])
    with torch.no_grad():
        cache = backbone.new_cache(capacity=8, device=x.device, padding_B=padding)
        first = backbone.extend(x[:, :6], cache=cache)
        cache.keep(torch.tensor([2, 1]))
        last = backbone.extend(x[[2, 1], 6:], cache=cache)
        for row, empty in enumerate(padding.tolist()):
            alone = backbone(x[row : row + 1, empty:])
            assert (first[row, empty:] - alone[0, : 6 - empty]).abs().max() < 1e-5
        assert (last[0] - backbone(x[2:, 5:])[0, 1:]).abs().max() < 1e-5
        assert (last[1] - backbone(x[1:2, 3:])[0, 3:]).abs().max() < 1e-5


@pytest.mark.parametrize("settings", CASES)
def test_packed_is_unpacked(settings: LatentLMSettings) -> None:
    backbone = make_backbone(settings)
    x = embeddings(2, 9)
    document = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, -1], [3, 3, 3, 3, 3, 3, -1, -1, -1]])
    position = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 4, 5, 0, 0, 0]])
    with torch.no_grad():
        packed = backbone(x, document_BT=document, position_BT=position)
        for number in range(4):
            row, columns = (document == number).nonzero(as_tuple=True)
            alone = backbone(x[row[0], columns][None])
            assert (packed[row[0], columns] - alone[0]).abs().max() < 1e-5
        loose = backbone(x)
    assert (packed - loose)[0, 3:8].abs().max() > 1e-2  # packing changes something
    assert packed.isfinite().all()


def test_recomputing_activations_changes_no_gradient() -> None:
    gradients, calls = [], []
    for recompute in (False, True):
        backbone = make_backbone(LLAMA).train()
        backbone.recompute = recompute
        backbone.layers[0].attention_norm.register_forward_hook(lambda *_: calls.append(1))
        backbone(embeddings(2, 5)).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in backbone.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
        assert plain.abs().max() > 0
    assert len(calls) == 1 + 2  # the second backbone ran its layer again in the backward pass
