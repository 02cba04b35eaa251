"""LatentLM: the paper's sizes, the loss term by term, and what may not change it."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from latentlm.catalogue import build_model, parameter_count
from latentlm.models import LatentLM, flops_per_item
from latentlm.models.latent_lm import LossTerms
from latentlm.randomness import Draw, RowNoise
from latentlm.settings import DiffusionSettings, HeadSettings, LatentLMSettings, SamplerSettings

SMALL = LatentLMSettings(
    classes=3,
    latent_count=5,
    latent_width=4,
    width=16,
    depth=2,
    heads=2,
    ffn_width=32,
    head=HeadSettings(depth=2, ffn_width=24),
)


def make_model(settings: LatentLMSettings = SMALL) -> LatentLM:
    """A model whose zero-initialised weights are not zero, so that everything acts."""
    torch.manual_seed(0)
    model = build_model(settings)
    for weight in (model.head.modulation.weight, model.head.output.weight):
        torch.nn.init.normal_(weight, std=0.2)
    return model


def make_batch(batch: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(latents, labels, ids)."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 5, 4, generator=generator)
    return latents, torch.arange(batch) % 3, torch.arange(batch) + 100


def compute_loss(
    model: LatentLM, rows: slice = slice(None), *, draws: int = 3, dropout: float = 0.3
) -> LossTerms:
    latents, labels, ids = make_batch()
    noise = RowNoise(seed=9, ids_B=ids[rows], epochs_B=2)
    return model(
        latents[rows],
        labels[rows],
        noise=noise,
        timesteps_per_token=draws,
        label_dropout=dropout,
    )


@pytest.mark.parametrize(
    ("width", "depth", "heads", "ffn_width", "head_depth", "millions"),
    [
        (1024, 24, 16, 4096, 3, 455.4),
        (1536, 24, 12, 6144, 3, 1023.6),
        (2048, 24, 16, 8192, 3, 1818.8),
        (2560, 32, 20, 10240, 3, 3679.9),
        (1024, 32, 16, 2730, 6, 477.3),
    ],
)
def test_parameter_counts_are_the_papers(
    width: int, depth: int, heads: int, ffn_width: int, head_depth: int, millions: float
) -> None:
    settings = LatentLMSettings(
        classes=1000,
        latent_count=256,
        latent_width=16,
        width=width,
        depth=depth,
        heads=heads,
        ffn_width=ffn_width,
        head=HeadSettings(depth=head_depth, ffn_width=ffn_width),
    )
    assert parameter_count(settings) == pytest.approx(millions * 1e6, rel=2e-4)


def test_loss_is_the_sum_written_out() -> None:
    model = make_model()
    latents, labels, ids = make_batch()
    noise = RowNoise(seed=9, ids_B=ids, epochs_B=2)
    terms = compute_loss(model)
    timesteps = noise.integers(Draw.TIMESTEP, 1000, 5, 3)
    epsilon = noise.normal(Draw.DIFFUSION_NOISE, 5, 3, 4)
    dropped = noise.uniform(Draw.LABEL_DROPOUT) < 0.3
    assert 0 < dropped.sum() < 6
    total, sums, counts = 0.0, torch.zeros(10), torch.zeros(10)
    with torch.no_grad():
        for row in range(6):
            label = torch.tensor([3]) if dropped[row] else labels[row : row + 1]
            sequence = [model.class_embedding(label)]
            for position in range(5):
                hidden = model.backbone(torch.stack(sequence, dim=1))[:, -1]
                for draw in range(3):
                    t = timesteps[row, position, draw]
                    alpha, sigma = model.process.alphas[t], model.process.sigmas[t]
                    x0, noise_Z = latents[row, position], epsilon[row, position, draw]
                    x_t = alpha * x0 + sigma * noise_Z
                    v = model.head(x_t[None], t[None], condition=model.head.condition(hidden))
                    error = float((v[0] - (alpha * noise_Z - sigma * x0)).square().mean())
                    total += error
                    sums[t // 100] += error
                    counts[t // 100] += 1
                sequence.append(model.latent_projection(latents[row : row + 1, position]))
    assert terms.total.item() == pytest.approx(total, rel=1e-5)
    assert terms.count.item() == 6 * 5 * 3
    torch.testing.assert_close(terms.bin_sums_10, sums)
    torch.testing.assert_close(terms.bin_counts_10, counts)


def test_batches_add_up_to_the_whole_and_so_do_gradients() -> None:
    model = make_model()
    whole = compute_loss(model)
    whole.total.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    parts = [compute_loss(model, slice(0, 1)), compute_loss(model, slice(1, 6))]
    for part in parts:
        part.total.backward()
    for name in LossTerms._fields:
        summed = sum(getattr(part, name) for part in parts)
        torch.testing.assert_close(summed, getattr(whole, name), rtol=1e-5, atol=1e-5)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


def test_a_target_never_reaches_its_own_condition_or_an_earlier_one() -> None:
    model = make_model()
    latents, labels, _ = make_batch(1)
    latents.requires_grad_()
    condition = model.head.condition(model.hidden(latents, labels))
    for position in range(5):
        (gradient,) = torch.autograd.grad(condition[0, position].sum(), latents, retain_graph=True)
        reach = gradient[0].abs().sum(-1)
        assert (reach[position:] == 0).all()
        assert (reach[:position] > 0).all()


def test_label_dropout_of_one_hides_every_label_and_of_zero_none() -> None:
    model = make_model()
    compute_loss(model, dropout=1.0).total.backward()
    seen = model.class_embedding.weight.grad.abs().sum(-1) > 0  # type: ignore[union-attr]
    assert seen.tolist() == [False, False, False, True]
    model.zero_grad()
    compute_loss(model, dropout=0.0).total.backward()
    seen = model.class_embedding.weight.grad.abs().sum(-1) > 0  # type: ignore[union-attr]
    assert seen.tolist() == [True, True, True, False]


def test_loss_starts_at_the_power_of_the_target() -> None:
    torch.manual_seed(0)
    terms = compute_loss(build_model(SMALL), draws=200)  # the head starts at 0, v has power 1
    assert (terms.total / terms.count).item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("prediction", ["v", "epsilon", "x0"])
def test_autocast_keeps_the_loss_in_fp32_and_close(prediction: str) -> None:
    diffusion = DiffusionSettings(prediction=prediction)  # type: ignore[arg-type]
    model = make_model(dataclasses.replace(SMALL, diffusion=diffusion, kv_heads=1))
    exact = compute_loss(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = compute_loss(model)
    terms.total.backward()
    assert {tensor.dtype for tensor in terms} == {torch.float32}
    assert terms.total.item() == pytest.approx(exact.total.item(), rel=0.02)


def test_flops_agree_with_torchs_counter() -> None:
    settings = dataclasses.replace(SMALL, width=256, heads=4, latent_count=64, ffn_width=512)
    settings = dataclasses.replace(settings, latent_width=16)
    with torch.device("meta"):
        model = LatentLM(settings)
        noise = RowNoise(seed=0, ids_B=torch.arange(2))
        latents, labels = torch.empty(2, 64, 16), torch.zeros(2, dtype=torch.int64)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        terms = model(latents, labels, noise=noise, timesteps_per_token=4, label_dropout=0.0)
        terms.total.backward()
    # torch leaves out gradients by inputs that need none: the first product of three networks
    assert flops_per_item(settings, 4) == pytest.approx(counter.get_total_flops() / 2, rel=0.04)


def test_wrong_shapes_and_kinds_are_named() -> None:
    noise = RowNoise(seed=0, ids_B=torch.arange(2))
    with pytest.raises(ValueError, match=r"latents have shape \(2, 5, 8\); the model needs"):
        make_model()(
            torch.zeros(2, 5, 8),
            torch.zeros(2, dtype=torch.int64),
            noise=noise,
            timesteps_per_token=1,
            label_dropout=0.0,
        )
    with pytest.raises(
        ValueError, match="settings SamplerSettings are of none of the kinds latent_lm"
    ):
        build_model(SamplerSettings())  # type: ignore[arg-type]
