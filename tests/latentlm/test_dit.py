"""DiT: an independent reading of its equations, its symmetries, its start at zero, its size."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from latentlm.models import dit as dit_module
from latentlm.models.dit import DiT, flops_per_image, grid_positions
from latentlm.settings import DiTSettings

SMALL = DiTSettings(
    classes=5, latent_count=9, latent_width=4, width=32, depth=2, heads=4, ffn_width=40
)


def random_model(settings: DiTSettings = SMALL, *, seed: int = 0) -> DiT:
    """Every weight drawn, also those that start at zero, so that every path counts."""
    generator = torch.Generator().manual_seed(seed)
    model = DiT(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def inputs(batch: int = 3, *, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_BNZ = torch.randn(batch, SMALL.latent_count, SMALL.latent_width, generator=generator)
    times_B = torch.randint(1000, (batch,), generator=generator)
    labels_B = torch.randint(SMALL.classes + 1, (batch,), generator=generator)
    return x_BNZ, times_B, labels_B


def reference(model: DiT, x: Tensor, time: float, label: int) -> Tensor:
    """One image, latent by latent and head by head, from the weights alone."""
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    width, heads = model.settings.width, model.settings.heads

    def norm(v: Tensor) -> Tensor:
        return v / torch.sqrt((v * v).mean() + model.settings.norm_eps)

    def silu(v: Tensor) -> Tensor:
        return v / (1 + torch.exp(-v))

    angles = torch.tensor([time * 10000 ** (-i / 128) for i in range(128)])
    embedded = torch.cat((torch.cos(angles), torch.sin(angles))).double()
    embedded = weights["timestep_network.2.weight"] @ silu(
        weights["timestep_network.0.weight"] @ embedded
    )
    condition = silu(embedded + weights["class_embedding.weight"][label])
    side = round(len(x) ** 0.5)
    tokens = []
    for n, latent in enumerate(x):
        halves = []
        for index in (n // side, n % side):
            turns = [index * 10000 ** (-i / (width / 4)) for i in range(width // 4)]
            halves += [torch.tensor(turns).sin(), torch.tensor(turns).cos()]
        tokens.append(weights["noisy_projection.weight"] @ latent + torch.cat(halves).double())
    for layer in range(model.settings.depth):
        own = {k[9:]: v for k, v in weights.items() if k.startswith(f"blocks.{layer}.")}
        parts = (own["modulation.weight"] @ condition).split(width)
        queries_keys_values = [
            (own["attention.query_key_value.weight"] @ (norm(t) * (1 + parts[1]) + parts[0]))
            .view(3, heads, -1)
            for t in tokens
        ]  # fmt: skip
        for n in range(len(tokens)):
            mixed = []
            for head in range(heads):
                scores = torch.stack(
                    [
                        queries_keys_values[n][0, head] @ other[1, head]
                        for other in queries_keys_values
                    ]
                )
                shares = torch.softmax(scores / (width // heads) ** 0.5, dim=0)
                mixed.append(
                    sum(s * o[2, head] for s, o in zip(shares, queries_keys_values, strict=True))
                )
            tokens[n] = tokens[n] + parts[2] * (own["attention.output.weight"] @ torch.cat(mixed))
        for n, token in enumerate(tokens):
            inner = own["feedforward.gate_and_up.weight"] @ (
                norm(token) * (1 + parts[4]) + parts[3]
            )
            gate, up = inner.chunk(2)
            tokens[n] = token + parts[5] * (own["feedforward.down.weight"] @ (silu(gate) * up))
    shift, scale = (weights["final_modulation.weight"] @ condition).chunk(2)
    return torch.stack([weights["output.weight"] @ (norm(t) * (1 + scale) + shift) for t in tokens])


@torch.no_grad()
def test_it_is_the_network_of_its_equations() -> None:
    model, (x_BNZ, times_B, labels_B) = random_model(), inputs()
    expected = [
        reference(model, x.double(), float(t), int(y))
        for x, t, y in zip(x_BNZ, times_B, labels_B, strict=True)
    ]
    got = model.denoise(x_BNZ, times_B, labels_B=labels_B)
    assert (got - torch.stack(expected)).abs().max() < 1e-4 * torch.stack(expected).abs().max()


@torch.no_grad()
def test_a_new_model_predicts_zero_and_its_blocks_change_nothing() -> None:
    model = DiT(SMALL)
    x_BNZ, times_B, labels_B = inputs()
    assert not model.denoise(x_BNZ, times_B, labels_B=labels_B).any()
    torch.nn.init.normal_(model.output.weight)
    shallow = DiT(replace(SMALL, depth=1))
    shallow.load_state_dict({k: v for k, v in model.state_dict().items() if "blocks.1" not in k})
    both = [m.denoise(x_BNZ, times_B, labels_B=labels_B) for m in (model, shallow)]
    assert both[0].any()
    assert torch.equal(*both)


@torch.no_grad()
def test_without_positions_permuted_latents_are_permuted_predictions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, (x_BNZ, times_B, labels_B) = random_model(), inputs()
    order = torch.tensor([3, 1, 4, 0, 5, 8, 2, 6, 7])

    def gap() -> float:
        straight = model.denoise(x_BNZ, times_B, labels_B=labels_B)
        permuted = model.denoise(x_BNZ[:, order], times_B, labels_B=labels_B)
        return float((straight[:, order] - permuted).abs().max() / straight.abs().max())

    assert gap() > 1e-2  # positions tell latents apart
    monkeypatch.setattr(
        dit_module,
        "grid_positions",
        lambda *, side, width, device: torch.zeros(side**2, width, device=device),
    )
    assert gap() < 1e-5


@torch.no_grad()
def test_every_latent_sees_every_other_and_no_other_image() -> None:
    model, (x_BNZ, times_B, labels_B) = random_model(), inputs()
    straight = model.denoise(x_BNZ, times_B, labels_B=labels_B)
    changed = x_BNZ.clone()
    changed[1, -1] += 1
    moved = (model.denoise(changed, times_B, labels_B=labels_B) - straight).abs().amax(-1)
    assert bool((moved[1] > 1e-6).all())  # the first latent too: nothing is causal
    assert bool((moved[[0, 2]] < 1e-6).all())
    alone = model.denoise(x_BNZ[1:2], times_B[1:2], labels_B=labels_B[1:2])
    assert torch.allclose(alone[0], straight[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_time_and_class_matter_and_guidance_reaches_every_channel() -> None:
    model, (x_BNZ, times_B, labels_B) = random_model(), inputs()
    null_B = torch.full_like(labels_B, SMALL.classes)
    labels_B = torch.tensor([0, 1, 2])
    conditional = model.denoise(x_BNZ, times_B, labels_B=labels_B)
    unconditional = model.denoise(x_BNZ, times_B, labels_B=null_B)
    assert conditional.shape == x_BNZ.shape  # nothing but latents: no predicted variance
    guided = unconditional + 3 * (conditional - unconditional)
    assert bool(((guided - conditional).abs() > 1e-6).all())
    later = model.denoise(x_BNZ, times_B + 1, labels_B=labels_B)
    assert bool(((later - conditional).abs().amax((1, 2)) > 1e-5).all())


def test_positions_are_distinct_and_rows_and_columns_are_treated_alike() -> None:
    positions = grid_positions(side=4, width=32, device=torch.device("cpu"))
    assert len({tuple(row.tolist()) for row in positions}) == 16
    grid = positions.view(4, 4, 2, 16)
    assert torch.equal(grid[2, :, 0], grid[2, :1, 0].expand(4, -1))
    assert torch.equal(grid[..., 0, :], grid.transpose(0, 1)[..., 1, :])


def test_all_of_it_learns() -> None:
    model = random_model()
    x_BNZ, times_B, labels_B = inputs()
    model.denoise(x_BNZ, times_B, labels_B=labels_B).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_latents_of_another_shape_are_refused() -> None:
    x_BNZ, times_B, labels_B = inputs()
    with pytest.raises(ValueError, match=r"= \(batch, 9, 4\)"):
        DiT(SMALL).denoise(x_BNZ[:, :4], times_B, labels_B=labels_B)


def test_flops_follow_what_meets_an_image_once_and_what_every_latent() -> None:
    width, ffn, count, latent = 32, 40, 9, 4
    once = 256 * width + width**2 + 2 * (6 * width**2) + 2 * width**2
    each = 2 * (4 * width**2 + 3 * width * ffn) + 2 * latent * width
    attention = 12 * count**2 * width * 2
    assert flops_per_image(SMALL) == 6 * (once + count * each) + attention
