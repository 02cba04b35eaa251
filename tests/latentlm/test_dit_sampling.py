"""Sampling of DiT: a known answer, guidance row by row, batched = single, through the one door."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentlm.diffusion.samplers import sample_x, solver_table
from latentlm.generate import sample_latents, solver_states
from latentlm.models import DiT, find_targets
from latentlm.randomness import Draw, RowNoise
from latentlm.sequence import class_conditional
from latentlm.settings import DiffusionSettings, DiTSettings, SamplerSettings

SETTINGS = DiTSettings(
    classes=3, latent_count=4, latent_width=3, width=16, depth=2, heads=4, ffn_width=24
)
FLOW = DiffusionSettings(process="flow", prediction="velocity")
SAMPLER = SamplerSettings(steps=4, temperature=0.9)
LABELS = torch.tensor([0, 1, 2, 2, 0])
SCALES = torch.tensor([1.0, 2.0, 1.0, 3.0, 0.5])
SOLVERS = ["dpm_solver_pp_2m", "ddim", "ddpm", "euler", "heun"]


def make_model(diffusion: DiffusionSettings | None = None) -> DiT:
    generator = torch.Generator().manual_seed(0)
    model = DiT(dataclasses.replace(SETTINGS, diffusion=diffusion or DiffusionSettings()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def make_noise(rows: slice = slice(None)) -> RowNoise:
    return RowNoise(seed=4, ids_B=torch.arange(5)[rows])


def sample(
    model: DiT,
    rows: slice = slice(None),
    *,
    scales: Tensor = SCALES,
    sampler: SamplerSettings = SAMPLER,
) -> Tensor:
    return sample_latents(
        model,
        LABELS[rows],
        cfg_scales_B=scales[rows],
        sampler=sampler,
        noise=make_noise(rows),
    )


@torch.no_grad()
def by_definition(model: DiT, row: int, *, sampler: SamplerSettings) -> Tensor:
    """One image alone, both streams in batches of their own at every evaluation."""
    table = solver_table(model.process, sampler)
    own = [make_noise(slice(row, row + 1)).at(n + 1) for n in range(4)]
    initial_NZ = torch.cat([one.normal(Draw.INITIAL_NOISE, 3) for one in own])
    low, high = (edge * 1000 for edge in sampler.guidance_interval)

    def denoise(x_NZ: Tensor, index: int) -> Tensor:
        time = torch.tensor([table[index].time])
        conditional, null = (
            model.denoise(x_NZ[None], time, labels_B=torch.tensor([label]))[0]
            for label in (int(LABELS[row]), 3)
        )
        inside = low < table[index].time <= high
        return null + (SCALES[row] if inside else 1) * (conditional - null)

    def fresh(index: int) -> Tensor:
        return torch.cat([one.at(index).normal(Draw.ANCESTRAL_NOISE, 3) for one in own])

    return sample_x(denoise, initial_NZ * sampler.temperature, steps=table, fresh=fresh)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("diffusion", [None, FLOW], ids=["ddpm", "flow"])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.7)])
def test_a_batch_samples_what_each_row_is_by_definition(
    solver: Any, diffusion: DiffusionSettings | None, interval: tuple[float, float]
) -> None:
    model = make_model(diffusion)
    sampler = dataclasses.replace(SAMPLER, solver=solver, guidance_interval=interval)
    whole = sample(model, sampler=sampler)
    assert whole.shape == (5, 4, 3)
    assert whole.dtype == torch.float32
    for row in range(5):
        expected = by_definition(model, row, sampler=sampler)
        torch.testing.assert_close(whole[row], expected, rtol=1e-4, atol=1e-5)
        alone = sample(model, slice(row, row + 1), sampler=sampler)
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-4, atol=1e-5)
    assert (whole[0] - whole[4]).abs().max() > 0.1


def test_only_guided_rows_have_a_twin_and_only_at_guided_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, seen = make_model(), []
    whole: Callable[..., Tensor] = model.denoise

    def denoise(x_BNZ: Tensor, times_B: Tensor, *, labels_B: Tensor) -> Tensor:
        seen.append(labels_B.tolist())
        return whole(x_BNZ, times_B, labels_B=labels_B)

    monkeypatch.setattr(model, "denoise", denoise)
    conditional = sample(model, scales=torch.ones(5))
    assert seen == [LABELS.tolist()] * 4
    seen.clear()
    rows = sample(model, sampler=dataclasses.replace(SAMPLER, guidance_interval=(0.0, 0.6)))
    assert seen == [LABELS.tolist()] * 2 + [[*LABELS.tolist(), 3, 3, 3]] * 2
    torch.testing.assert_close(rows[[0, 2]], conditional[[0, 2]], rtol=1e-5, atol=1e-5)
    assert all((rows[row] - conditional[row]).abs().max() > 1e-3 for row in (1, 3, 4))


class GaussianImages:
    """The best v of images x₀ ~ N(m, S S), S over all latents and channels of an image."""

    def __init__(self, model: DiT) -> None:
        generator = torch.Generator().manual_seed(3)
        mixed = torch.randn(12, 12, generator=generator, dtype=torch.float64)
        self.values, self.vectors = torch.linalg.eigh(mixed @ mixed.T / 12)
        self.values = self.values.clamp(min=0.05).sqrt()  # of S
        self.means_K = torch.tensor([0.7, -0.2, 0.1, 0.0], dtype=torch.float64)
        self.process = model.process

    def root(self) -> Tensor:
        return self.vectors @ torch.diag(self.values) @ self.vectors.T

    def denoise(self, x_BNZ: Tensor, times_B: Tensor, *, labels_B: Tensor) -> Tensor:
        alpha, sigma = (float(a) for a in self.process.exact_levels(times_B[0].item()))
        mean = self.means_K[labels_B][:, None]
        shrink = alpha * self.values**2 / (alpha**2 * self.values**2 + sigma**2)
        x = x_BNZ.flatten(1).double()
        x0 = mean + (x - alpha * mean) @ self.vectors @ torch.diag(shrink) @ self.vectors.T
        epsilon = (x - alpha * x0) / sigma
        return (alpha * epsilon - sigma * x0).float().view_as(x_BNZ)


@pytest.mark.parametrize(
    ("solver", "steps"), [("dpm_solver_pp_2m", 60), ("heun", 60), ("ddim", 1000), ("euler", 1000)]
)
def test_gaussian_images_come_out_as_the_flow_of_their_noise(
    monkeypatch: pytest.MonkeyPatch, solver: Any, steps: int
) -> None:
    """From pure noise ε, the probability flow of N(m, S S) ends at m + S ε."""
    model = make_model()
    known = GaussianImages(model)
    monkeypatch.setattr(model, "denoise", known.denoise)
    sampler = SamplerSettings(solver=solver, steps=steps)
    found = sample(model, scales=torch.ones(5), sampler=sampler).double().flatten(1)
    initial = torch.stack([make_noise().at(n).normal(Draw.INITIAL_NOISE, 3) for n in range(1, 5)])
    noise = initial.transpose(0, 1).flatten(1).double()
    expected = known.means_K[LABELS][:, None] + noise @ known.root()
    assert float((found - expected).abs().max()) < 0.02
    assert float((found - expected.flip(0)).abs().max()) > 0.5


def test_ancestral_samples_of_gaussian_images_have_their_covariance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model()
    known = GaussianImages(model)
    monkeypatch.setattr(model, "denoise", known.denoise)
    found = sample_latents(
        model,
        torch.zeros(4000, dtype=torch.int64),
        cfg_scales_B=torch.ones(4000),
        sampler=SamplerSettings(solver="ddpm", steps=250),
        noise=RowNoise(seed=0, ids_B=torch.arange(4000)),
    )
    samples = found.flatten(1).double().numpy()
    assert np.abs(samples.mean(0) - 0.7).max() < 0.07
    covariance = (known.root() @ known.root()).numpy()
    assert np.abs(np.cov(samples.T) - covariance).max() < 0.15
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() > 0.3


def test_progress_lengths_and_schedules() -> None:
    model, calls = make_model(), []
    sample_latents(
        model,
        LABELS,
        cfg_scales_B=SCALES,
        sampler=SAMPLER,
        noise=make_noise(),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(done, 4) for done in range(1, 5)]
    with pytest.raises(ValueError, match="5 labels came with 2 guidance scales"):
        sample_latents(model, LABELS, cfg_scales_B=SCALES[:2], sampler=SAMPLER, noise=make_noise())
    rising = dataclasses.replace(SAMPLER, guidance_schedule="rising")
    with pytest.raises(ValueError, match="a dit draws all at once: choose constant"):
        sample(model, sampler=rising)


def test_states_end_in_the_sample() -> None:
    model = make_model()
    arguments: dict[str, Any] = {"cfg_scales_B": SCALES, "sampler": SAMPLER, "noise": make_noise()}
    states = solver_states(model, LABELS, **arguments)
    wanted = sample_latents(model, LABELS, **arguments)
    assert states.shape == (5, *wanted.shape)
    torch.testing.assert_close(states[-1], wanted, rtol=0, atol=0)


def test_a_tiny_model_learns_two_classes() -> None:
    """Class 0 is +1, -1, -1, +1 over the latents, class 1 the other way round, σ = 0.3."""
    torch.manual_seed(0)
    model = DiT(dataclasses.replace(SETTINGS, classes=2, width=32, ffn_width=64))
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0])[:, None]
    means_KNZ = torch.stack((signs, -signs)).expand(2, 4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.98))
    losses = []
    for step in range(150):
        ids = torch.arange(32) + 32 * step
        noise, labels = RowNoise(seed=0, ids_B=ids), ids % 2
        latents = means_KNZ[labels] + 0.3 * noise.normal(Draw.CODEC_NOISE, 4, 3)
        batch = class_conditional(latents, labels)
        targets = find_targets(batch, model.settings, noise=noise, condition_dropout=0.1)
        terms = model(batch, targets, noise=noise, timesteps_per_token=2)
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
        assert (samples[label::2].mean(0) - means_KNZ[label]).abs().max() < 0.35
        assert 0.15 < samples[label::2].std(0).mean() < 0.6
