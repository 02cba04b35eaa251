"""The loss of DiT: written out draw by draw, what it counts, and what may not change it."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from latentlm.diffusion.timesteps import draw_times
from latentlm.models import DiT, LossTerms, find_targets, flops_per_item
from latentlm.models.dit import flops_per_image
from latentlm.randomness import Draw, RowNoise
from latentlm.sequence import class_conditional
from latentlm.settings import DiffusionSettings, DiTSettings

SMALL = DiTSettings(
    classes=3, latent_count=4, latent_width=5, width=16, depth=2, heads=2, ffn_width=24
)
FLOW = DiffusionSettings(process="flow", prediction="velocity", timestep_law="logit_normal")


def make_model(settings: DiTSettings = SMALL) -> DiT:
    """A model whose zero-initialised weights are not zero, so that everything acts."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = DiT(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def make_batch(batch: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(latents, labels, ids)."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, 5, generator=generator)
    return latents, torch.arange(batch) % 3, torch.arange(batch) + 100


def compute_loss(
    model: DiT, rows: slice | list[int] = slice(None), *, draws: int = 3, dropout: float = 0.3
) -> LossTerms:
    latents, labels, ids = make_batch()
    noise = RowNoise(seed=9, ids_B=ids[rows], epochs_B=2)
    batch = class_conditional(latents[rows], labels[rows])
    targets = find_targets(batch, model.settings, noise=noise, condition_dropout=dropout)
    terms: LossTerms = model(batch, targets, noise=noise, timesteps_per_token=draws)
    return terms


@pytest.mark.parametrize(
    "diffusion",
    [DiffusionSettings(), DiffusionSettings(timestep_draw="stratified"), FLOW],
    ids=["ddpm", "stratified", "flow"],
)
@torch.no_grad()
def test_loss_is_the_sum_written_out_with_one_time_for_an_image(
    diffusion: DiffusionSettings,
) -> None:
    model = make_model(dataclasses.replace(SMALL, diffusion=diffusion))
    latents, labels, ids = make_batch()
    noise = RowNoise(seed=9, ids_B=ids, epochs_B=2)
    dropped = noise.uniform(Draw.LABEL_DROPOUT) < 0.3
    assert 0 < dropped.sum() < 6
    times_BM = draw_times(noise.uniform(Draw.TIMESTEP, 3), settings=diffusion)
    epsilon_BMNZ = noise.normal(Draw.DIFFUSION_NOISE, 3, 4, 5)
    total, sums, counts = 0.0, torch.zeros(10), torch.zeros(10)
    for row in range(6):
        label = torch.tensor([3]) if dropped[row] else labels[row : row + 1]
        for draw in range(3):
            t, epsilon, x0 = float(times_BM[row, draw]), epsilon_BMNZ[row, draw], latents[row]
            if diffusion.process == "ddpm":
                alpha, sigma = model.process.alphas[int(t)], model.process.sigmas[int(t)]
                target = alpha * epsilon - sigma * x0
            else:
                alpha, sigma = 1 - t / 1000, t / 1000
                target = epsilon - x0
            x_t = (alpha * x0 + sigma * epsilon).float()[None]
            seen = model.denoise(x_t, times_BM[row, draw][None], labels_B=label)[0]
            for latent in range(4):
                error = float((seen[latent] - target[latent]).square().mean())
                total += error
                sums[int(t // 100)] += error
                counts[int(t // 100)] += 1
    terms = compute_loss(model)
    assert terms.sums_K.tolist() == [pytest.approx(total, rel=1e-5), 0, 0, 0]
    assert terms.counts_K.tolist() == [6 * 4 * 3, 0, 0, 0]
    torch.testing.assert_close(terms.bin_sums_10, sums)
    torch.testing.assert_close(terms.bin_counts_10, counts)


def test_batches_add_up_to_the_whole_and_so_do_gradients() -> None:
    model = make_model()
    whole = compute_loss(model)
    whole.sums_K[0].backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    parts = [compute_loss(model, [4]), compute_loss(model, [0, 1, 2, 3, 5])]
    for part in parts:
        part.sums_K[0].backward()
    for name in LossTerms._fields:
        summed = sum(getattr(part, name) for part in parts)
        torch.testing.assert_close(summed, getattr(whole, name), rtol=1e-5, atol=1e-5)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_mean_is_one_number_whatever_the_number_of_draws() -> None:
    model = make_model()
    many, one = compute_loss(model, draws=400), compute_loss(model, draws=1)
    assert many.counts_K[0] == 400 * one.counts_K[0]
    more = compute_loss(model, draws=800)
    means = [float(terms.sums_K[0] / terms.counts_K[0]) for terms in (many, more)]
    assert means[0] == pytest.approx(means[1], rel=0.05)
    assert float(one.sums_K[0] / one.counts_K[0]) != pytest.approx(means[1], rel=1e-3)


def test_label_dropout_of_one_hides_every_label_and_of_zero_none() -> None:
    model = make_model()
    for dropout, expected in (
        (1.0, [False, False, False, True]),
        (0.0, [True, True, True, False]),
    ):
        model.zero_grad()
        compute_loss(model, dropout=dropout).sums_K[0].backward()
        gradient = model.class_embedding.weight.grad
        assert gradient is not None
        assert (gradient.abs().sum(-1) > 0).tolist() == expected


def test_loss_starts_at_the_power_of_the_target() -> None:
    torch.manual_seed(0)
    terms = compute_loss(DiT(SMALL), draws=200)  # the output starts at 0, v has power 1
    assert (terms.sums_K[0] / terms.counts_K[0]).item() == pytest.approx(1, rel=0.1)


def test_recomputed_activations_change_no_gradient() -> None:
    found = []
    for on in (False, True):
        model = make_model().train()
        model.recompute_activations(on)
        compute_loss(model).sums_K[0].backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_autocast_keeps_the_loss_in_fp32_and_close() -> None:
    model = make_model()
    exact = compute_loss(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = compute_loss(model)
    terms.sums_K[0].backward()
    assert {terms.sums_K.dtype, terms.bin_sums_10.dtype} == {torch.float32}
    assert terms.sums_K[0].item() == pytest.approx(exact.sums_K[0].item(), rel=0.02)


def test_flops_of_an_item_are_those_of_all_its_times_by_torchs_counter() -> None:
    settings = dataclasses.replace(SMALL, width=128, latent_count=64, ffn_width=256)
    model, noise = DiT(settings), RowNoise(seed=0, ids_B=torch.arange(2))
    batch = class_conditional(torch.zeros(2, 64, 5), torch.zeros(2, dtype=torch.int64))
    targets = find_targets(batch, settings, noise=noise, condition_dropout=0.0)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        terms = model(batch, targets, noise=noise, timesteps_per_token=3)
        terms.sums_K[0].backward()
    assert flops_per_item(settings, 3) == 3 * flops_per_image(settings)
    assert flops_per_item(settings, 3) == pytest.approx(counter.get_total_flops() / 2, rel=0.04)


def test_wrong_shapes_and_unscored_latents_are_named() -> None:
    model, noise = make_model(), RowNoise(seed=0, ids_B=torch.arange(2))
    labels = torch.zeros(2, dtype=torch.int64)
    batch = class_conditional(torch.zeros(2, 4, 8), labels)
    targets = find_targets(batch, SMALL, noise=noise, condition_dropout=0.0)
    with pytest.raises(ValueError, match=r"latent_width\) = \(batch, 4, 5\)"):
        model(batch, targets, noise=noise, timesteps_per_token=1)
    batch = class_conditional(torch.zeros(2, 4, 5), labels)
    scored_BT = batch.scored_BT.clone()
    scored_BT[1, 2] = False
    batch = batch._replace(scored_BT=scored_BT)
    targets = find_targets(batch, SMALL, noise=noise, condition_dropout=0.0)
    with pytest.raises(ValueError, match="7 of 8 latents are scored"):
        model(batch, targets, noise=noise, timesteps_per_token=1)
