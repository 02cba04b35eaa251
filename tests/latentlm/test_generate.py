"""Decoding: cached = uncached, batched = single, guidance row by row; and that training works."""

import dataclasses

import pytest
import torch

from latentlm.diffusion.samplers import dpm_solver_pp_2m, sample_x
from latentlm.generate import sample_latents, solver_states
from latentlm.models import LatentLM, find_targets
from latentlm.randomness import Draw, RowNoise
from latentlm.sequence import class_conditional
from latentlm.settings import HeadSettings, LatentLMSettings, SamplerSettings

SETTINGS = LatentLMSettings(
    classes=3,
    latent_count=6,
    latent_width=4,
    width=16,
    depth=2,
    heads=4,
    kv_heads=2,
    ffn_width=32,
    head=HeadSettings(depth=2, ffn_width=24),
)
SAMPLER = SamplerSettings(steps=4, temperature=0.9)
LABELS = torch.tensor([0, 1, 2, 2, 0])
SCALES = torch.tensor([1.0, 2.0, 1.0, 3.0, 0.5])


@pytest.fixture(scope="module")
def model() -> LatentLM:
    torch.manual_seed(0)
    model = LatentLM(SETTINGS)
    for weight in (model.head.modulation.weight, model.head.output.weight):
        torch.nn.init.normal_(weight, std=0.2)
    return model


def make_noise(rows: slice = slice(None)) -> RowNoise:
    return RowNoise(seed=4, ids_B=torch.arange(5)[rows])


def sample(
    model: LatentLM,
    rows: slice = slice(None),
    *,
    scales: torch.Tensor = SCALES,
    sampler: SamplerSettings = SAMPLER,
) -> torch.Tensor:
    return sample_latents(
        model,
        LABELS[rows],
        cfg_scales_B=scales[rows],
        sampler=sampler,
        noise=make_noise(rows),
    )


@torch.no_grad()
def sample_without_cache(model: LatentLM) -> torch.Tensor:
    """The definition: the whole prefix and both streams anew for every latent, all rows guided."""
    null = torch.full_like(LABELS, SETTINGS.classes)
    table = dpm_solver_pp_2m(model.process, steps=SAMPLER.steps)
    latents = torch.zeros(5, 6, 4)
    for position in range(6):
        noise = make_noise().at(position + 1).normal(Draw.INITIAL_NOISE, 4) * SAMPLER.temperature
        states = [
            model.hidden(class_conditional(latents, labels))[:, position]
            for labels in (LABELS, null)
        ]

        def denoise(
            x: torch.Tensor, index: int, states: list[torch.Tensor] = states
        ) -> torch.Tensor:
            timesteps = torch.full((5,), table[index].time)
            conditional, unconditional = (
                model.head(x, timesteps, condition=model.head.condition(state)) for state in states
            )
            return unconditional + SCALES[:, None] * (conditional - unconditional)

        latents[:, position] = sample_x(denoise, noise, steps=table)
    return latents


def test_cached_sampling_is_sampling_without_a_cache(model: LatentLM) -> None:
    torch.testing.assert_close(sample(model), sample_without_cache(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", ["dpm_solver_pp_2m", "ddim", "ddpm", "heun"])
def test_a_batch_samples_what_its_rows_sample_alone(model: LatentLM, solver: str) -> None:
    sampler = dataclasses.replace(SAMPLER, solver=solver)
    whole = sample(model, sampler=sampler)
    for row in range(5):
        alone = sample(model, slice(row, row + 1), sampler=sampler)
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-5, atol=1e-5)
    assert (whole[0] - whole[4]).abs().max() > 0.1


def test_scale_one_is_the_conditional_model_and_other_scales_are_not(model: LatentLM) -> None:
    rows = sample(model)
    conditional = sample(model, scales=torch.ones(5))
    torch.testing.assert_close(rows[[0, 2]], conditional[[0, 2]], rtol=1e-5, atol=1e-5)
    nearly = sample(model, scales=torch.full((5,), 1 + 1e-6))  # runs every null stream
    torch.testing.assert_close(nearly, conditional, rtol=1e-4, atol=1e-4)
    for row in (1, 3, 4):
        assert (rows[row] - conditional[row]).abs().max() > 1e-3


def test_scale_zero_ignores_the_label(model: LatentLM) -> None:
    null = sample(model, scales=torch.zeros(5))
    other = sample_latents(
        model,
        (LABELS + 1) % 3,
        cfg_scales_B=torch.zeros(5),
        sampler=SAMPLER,
        noise=make_noise(),
    )
    torch.testing.assert_close(null, other, rtol=1e-5, atol=1e-5)


def test_progress_counts_latents_and_lengths_are_checked(model: LatentLM) -> None:
    calls: list[tuple[int, int]] = []
    sample_latents(
        model,
        LABELS,
        cfg_scales_B=SCALES,
        sampler=SAMPLER,
        noise=make_noise(),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(done, 6) for done in range(1, 7)]
    with pytest.raises(ValueError, match="5 labels came with 2 guidance scales"):
        sample_latents(model, LABELS, cfg_scales_B=SCALES[:2], sampler=SAMPLER, noise=make_noise())


def test_states_go_from_the_noise_of_each_latent_to_the_sample(model: LatentLM) -> None:
    states = solver_states(model, LABELS, cfg_scales_B=SCALES, sampler=SAMPLER, noise=make_noise())
    assert states.shape == (SAMPLER.steps + 1, 5, 6, 4)
    torch.testing.assert_close(states[-1], sample(model), rtol=0, atol=0)
    for position in range(6):
        noise = make_noise().at(position + 1).normal(Draw.INITIAL_NOISE, 4)
        torch.testing.assert_close(states[0][:, position], noise * SAMPLER.temperature)
    steps = (states[1:] - states[:-1]).abs().amax(dim=(1, 2, 3))
    assert (steps > 0).all()


def test_a_tiny_model_learns_two_classes() -> None:
    """Class 0 alternates +1, -1 along the sequence, class 1 the other way round, σ = 0.3."""
    torch.manual_seed(0)
    model = LatentLM(
        dataclasses.replace(
            SETTINGS,
            classes=2,
            latent_count=4,
            width=32,
            head=HeadSettings(depth=2, ffn_width=64),
        )
    )
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    means_BNZ = torch.stack((signs, -signs)).expand(2, 4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.98))
    losses = []
    for step in range(150):
        ids = torch.arange(32) + 32 * step
        noise, labels = RowNoise(seed=0, ids_B=ids), ids % 2
        latents = means_BNZ[labels] + 0.3 * noise.normal(Draw.CODEC_NOISE, 4, 4)
        batch = class_conditional(latents, labels)
        targets = find_targets(batch, model.settings, noise=noise, condition_dropout=0.1)
        terms = model(batch, targets, noise=noise, timesteps_per_token=4)
        loss = terms.sums_K[0] / terms.counts_K[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    samples = sample_latents(
        model,
        torch.arange(200) % 2,
        cfg_scales_B=torch.ones(200),
        sampler=SamplerSettings(steps=10),
        noise=RowNoise(seed=1, ids_B=torch.arange(200)),
    )
    for label in (0, 1):
        mean_NZ = samples[label::2].mean(0)
        assert (mean_NZ - means_BNZ[label]).abs().max() < 0.35
        assert 0.15 < samples[label::2].std(0).mean() < 0.6
