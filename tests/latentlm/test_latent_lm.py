"""Class-conditional LatentLM: the loss term by term, and what may not change it."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from latentlm.catalogue import build_model, parameter_count
from latentlm.diffusion.timesteps import draw_times
from latentlm.models import LatentLM, LossTerms, find_targets, flops_per_item
from latentlm.randomness import Draw, RowNoise
from latentlm.sequence import class_conditional
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
    model = LatentLM(settings)
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
    batch = class_conditional(latents[rows], labels[rows])
    targets = find_targets(batch, model.settings, noise=noise, condition_dropout=dropout)
    terms: LossTerms = model(batch, targets, noise=noise, timesteps_per_token=draws)
    return terms


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


@pytest.mark.parametrize(
    "diffusion",
    [
        DiffusionSettings(),
        DiffusionSettings(timestep_draw="stratified"),
        DiffusionSettings(process="flow", prediction="velocity", timestep_law="logit_normal"),
    ],
    ids=["ddpm", "stratified", "flow"],
)
def test_loss_is_the_sum_written_out(diffusion: DiffusionSettings) -> None:
    model = make_model(dataclasses.replace(SMALL, diffusion=diffusion))
    latents, labels, ids = make_batch()
    noise = RowNoise(seed=9, ids_B=ids, epochs_B=2)
    terms = compute_loss(model)
    dropped = noise.uniform(Draw.LABEL_DROPOUT) < 0.3
    assert 0 < dropped.sum() < 6
    total, sums, counts = 0.0, torch.zeros(10), torch.zeros(10)
    with torch.no_grad():
        for row in range(6):
            label = torch.tensor([3]) if dropped[row] else labels[row : row + 1]
            sequence = [model.class_embedding(label)]
            for position in range(5):
                hidden = model.backbone(torch.stack(sequence, dim=1))[:, -1]
                own = noise.rows(torch.tensor([row])).at(position + 1)
                times = draw_times(own.uniform(Draw.TIMESTEP, 3), settings=diffusion)[0]
                epsilon = own.normal(Draw.DIFFUSION_NOISE, 3, 4)[0]
                for time, noise_Z in zip(times, epsilon, strict=True):
                    t, x0 = float(time), latents[row, position]
                    if diffusion.process == "ddpm":
                        alpha, sigma = model.process.alphas[int(t)], model.process.sigmas[int(t)]
                        target = alpha * noise_Z - sigma * x0
                    else:
                        alpha, sigma = 1 - t / 1000, t / 1000
                        target = noise_Z - x0
                    condition = model.head.condition(hidden)
                    seen = model.head(alpha * x0 + sigma * noise_Z, time[None], condition=condition)
                    error = float((seen[0] - target).square().mean())
                    total += error
                    sums[int(t // 100)] += error
                    counts[int(t // 100)] += 1
                sequence.append(model.latent_projection(latents[row : row + 1, position]))
    assert terms.sums_K[0].item() == pytest.approx(total, rel=1e-5)
    assert terms.counts_K.tolist() == [6 * 5 * 3, 0, 0, 0]
    torch.testing.assert_close(terms.bin_sums_10, sums)
    torch.testing.assert_close(terms.bin_counts_10, counts)


def test_batches_add_up_to_the_whole_and_so_do_gradients() -> None:
    model = make_model()
    whole = compute_loss(model)
    whole.sums_K[0].backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    parts = [compute_loss(model, slice(0, 1)), compute_loss(model, slice(1, 6))]
    for part in parts:
        part.sums_K[0].backward()
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
    condition = model.head.condition(model.hidden(class_conditional(latents, labels)))
    for position in range(5):
        (gradient,) = torch.autograd.grad(condition[0, position].sum(), latents, retain_graph=True)
        reach = gradient[0].abs().sum(-1)
        assert (reach[position:] == 0).all()
        assert (reach[:position] > 0).all()


def test_label_dropout_of_one_hides_every_label_and_of_zero_none() -> None:
    model = make_model()
    compute_loss(model, dropout=1.0).sums_K[0].backward()
    seen = model.class_embedding.weight.grad.abs().sum(-1) > 0  # type: ignore[union-attr]
    assert seen.tolist() == [False, False, False, True]
    model.zero_grad()
    compute_loss(model, dropout=0.0).sums_K[0].backward()
    seen = model.class_embedding.weight.grad.abs().sum(-1) > 0  # type: ignore[union-attr]
    assert seen.tolist() == [True, True, True, False]


def test_loss_starts_at_the_power_of_the_target() -> None:
    torch.manual_seed(0)
    terms = compute_loss(LatentLM(SMALL), draws=200)  # the head starts at 0, v has power 1
    assert (terms.sums_K[0] / terms.counts_K[0]).item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("prediction", ["v", "epsilon", "x0"])
def test_autocast_keeps_the_loss_in_fp32_and_close(prediction: str) -> None:
    diffusion = DiffusionSettings(prediction=prediction)  # type: ignore[arg-type]
    model = make_model(dataclasses.replace(SMALL, diffusion=diffusion, kv_heads=1))
    exact = compute_loss(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = compute_loss(model)
    terms.sums_K[0].backward()
    assert {terms.sums_K.dtype, terms.bin_sums_10.dtype} == {torch.float32}
    assert terms.sums_K[0].item() == pytest.approx(exact.sums_K[0].item(), rel=0.02)


def test_flops_agree_with_torchs_counter() -> None:
    settings = dataclasses.replace(SMALL, width=256, heads=4, latent_count=64, ffn_width=512)
    settings = dataclasses.replace(settings, latent_width=16)
    model, noise = LatentLM(settings), RowNoise(seed=0, ids_B=torch.arange(2))
    batch = class_conditional(torch.zeros(2, 64, 16), torch.zeros(2, dtype=torch.int64))
    targets = find_targets(batch, settings, noise=noise, condition_dropout=0.0)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        terms = model(batch, targets, noise=noise, timesteps_per_token=4)
        terms.sums_K[0].backward()
    # torch leaves out gradients by inputs that need none: the first product of three networks
    assert flops_per_item(settings, 4) == pytest.approx(counter.get_total_flops() / 2, rel=0.04)


def test_wrong_shapes_and_kinds_are_named() -> None:
    model, noise = make_model(), RowNoise(seed=0, ids_B=torch.arange(2))
    labels = torch.zeros(2, dtype=torch.int64)
    for latents, words in (
        (torch.zeros(2, 5, 8), "needs latent_width = 4"),
        (torch.zeros(2, 6, 4), "6 latents; the model needs latent_count = 5"),
    ):
        batch = class_conditional(latents, labels)
        targets = find_targets(batch, SMALL, noise=noise, condition_dropout=0.0)
        with pytest.raises(ValueError, match=words):
            model(batch, targets, noise=noise, timesteps_per_token=1)
    with pytest.raises(ValueError, match="settings SamplerSettings are of none of the kinds"):
        build_model(SamplerSettings())  # type: ignore[arg-type]
