"""Three classic faults of diffusion code, each caught by the direct test of what it breaks.

Every check runs on our code, and must fail on the mutant of it.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

from latentlm.diffusion.head import sinusoid
from latentlm.diffusion.process import DiffusionProcess
from latentlm.diffusion.samplers import SolverStep, dpm_solver_pp_2m, sample_x
from latentlm.settings import DiffusionSettings

PROCESS = DiffusionProcess(DiffusionSettings())
Embedding = Callable[[torch.Tensor], torch.Tensor]


def network(x: torch.Tensor, time: float) -> torch.Tensor:
    return torch.sin(1.3 * x + time / 300) + 0.3 * x.roll(1, -1)


def check_every_timestep_has_its_embedding(embed: Embedding) -> None:
    assert len(embed(torch.arange(1000)).unique(dim=0)) == 1000


def test_timesteps_in_bf16_share_their_embeddings() -> None:
    def mutant(timesteps: torch.Tensor) -> torch.Tensor:
        return sinusoid(timesteps.bfloat16())

    check_every_timestep_has_its_embedding(sinusoid)
    with pytest.raises(AssertionError):
        check_every_timestep_has_its_embedding(mutant)
    assert len(mutant(torch.arange(1000)).unique(dim=0)) == 507


def check_alpha_bar(alpha_bar: Any) -> None:
    """Against the product of cos² ratios, one factor at a time, and against diffusers in fp32."""
    product, expected = 1.0, []
    for t in range(1000):
        before, after = (
            math.cos((u / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (t, t + 1)
        )
        product *= 1 - min(1 - after / before, 0.999)
        expected.append(product)
    np.testing.assert_allclose(alpha_bar, expected, rtol=0, atol=1e-12)
    reference = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    np.testing.assert_allclose(alpha_bar, reference, rtol=0, atol=1e-5)


def test_a_schedule_off_by_one_has_other_levels() -> None:
    alpha_bar = PROCESS.alphas**2
    check_alpha_bar(alpha_bar)
    early, late = np.append(1.0, alpha_bar[:-1]), np.append(alpha_bar[1:], 0.0)
    for mutant in (early, late):
        with pytest.raises(AssertionError):
            check_alpha_bar(mutant)
        assert np.abs(mutant - alpha_bar).max() > 1e-3


def check_table_against_diffusers(table: list[SolverStep]) -> None:
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )
    scheduler.set_timesteps(len(table))
    x = noise = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, int(timestep)), timestep, x).prev_sample
    found = sample_x(lambda x, i: network(x, table[i].time), noise, steps=table)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5)


def test_a_network_told_the_neighbouring_time_samples_something_else() -> None:
    table = dpm_solver_pp_2m(PROCESS, steps=10)
    check_table_against_diffusers(table)
    for shift in (-1, 1):
        with pytest.raises(AssertionError):
            check_table_against_diffusers([s._replace(time=s.time + shift) for s in table])


def solve_in_fp64(noise: torch.Tensor, *, steps: int) -> torch.Tensor:
    """DPM-Solver++(2M) from its paper's formulas, in λ, all fp64."""
    times = np.linspace(0, 999, steps + 1).round()[:0:-1].astype(int)
    alpha, sigma = np.append(PROCESS.alphas[times], 1.0), np.append(PROCESS.sigmas[times], 0.0)
    x, before, h_before = noise.double(), None, 0.0
    for i in range(steps):
        x0 = alpha[i] * x - sigma[i] * network(x, int(times[i]))
        if i == steps - 1:
            return x0
        h = math.log(alpha[i + 1] / sigma[i + 1]) - math.log(alpha[i] / sigma[i])
        blend = x0 if before is None else x0 + (x0 - before) / (2 * h_before / h)
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (math.exp(-h) - 1) * blend
        before, h_before = x0, h
    return x


def check_state(sample: Callable[..., torch.Tensor], *, steps: int) -> None:
    noise = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    table = dpm_solver_pp_2m(PROCESS, steps=steps)
    found = sample(lambda x, i: network(x, table[i].time), noise, steps=table).double()
    expected = solve_in_fp64(noise, steps=steps)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def sample_in_bf16(denoise: Any, noise: torch.Tensor, *, steps: list[SolverStep]) -> torch.Tensor:
    """The recurrence with a state that is stored in bf16, as other implementations have it."""
    x, before = noise.bfloat16(), None
    for index, step in enumerate(steps):
        x0 = step.a * x.float() + step.b * denoise(x.float(), index)
        x_next = step.keep * x.float() + step.current * x0
        if before is not None:
            x_next = x_next + step.previous * before
        x, before = x_next.bfloat16(), x0
    return x.float()


@pytest.mark.parametrize("steps", [5, 20, 50])
def test_a_bf16_state_strays_from_the_exact_one(steps: int) -> None:
    check_state(sample_x, steps=steps)
    with pytest.raises(AssertionError):
        check_state(sample_in_bf16, steps=steps)
