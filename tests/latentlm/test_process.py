"""The forward process against diffusers, and the round trip through every kind of target."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from latentlm.diffusion.process import DiffusionProcess
from latentlm.settings import DiffusionSettings

SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_tables_noise_and_velocity_agree_with_diffusers(schedule: str) -> None:
    reference = DDPMScheduler(beta_schedule=SCHEDULES[schedule])
    process = DiffusionProcess(DiffusionSettings(schedule=schedule))
    np.testing.assert_allclose(process.alphas**2, reference.alphas_cumprod, rtol=2e-3)
    np.testing.assert_allclose(process.alphas**2, reference.alphas_cumprod, atol=1e-5)
    timesteps = torch.tensor([0, 1, 250, 500, 998, 999])
    x0, epsilon = torch.randn(6, 16), torch.randn(6, 16)
    torch.testing.assert_close(
        process.noised(x0, timesteps, epsilon=epsilon),
        reference.add_noise(x0, epsilon, timesteps),
        rtol=0,
        atol=2e-5,
    )
    torch.testing.assert_close(
        process.target(x0, timesteps, epsilon=epsilon),
        reference.get_velocity(x0, epsilon, timesteps),
        rtol=0,
        atol=2e-5,
    )


def test_cosine_table_has_the_published_values() -> None:
    alpha_bar = DiffusionProcess(DiffusionSettings()).alphas ** 2
    found = alpha_bar[[0, 499, 998, 999]]
    np.testing.assert_allclose(found, [0.99995869, 0.49384, 2.4288e-6, 2.4288e-9], rtol=1e-4)


@pytest.mark.parametrize("prediction", ["v", "epsilon", "x0"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_right_prediction_gives_the_data_back(prediction: str, schedule: str) -> None:
    process = DiffusionProcess(DiffusionSettings(schedule=schedule, prediction=prediction))
    timesteps = torch.arange(0, 900, 50).view(1, -1)
    x0, epsilon = torch.randn(2, 1, 8), torch.randn(2, 18, 8)
    x_t = process.noised(x0, timesteps, epsilon=epsilon)
    target = process.target(x0, timesteps, epsilon=epsilon)
    assert x_t.shape == target.shape == epsilon.shape
    found = process.to_x0(x_t, timesteps, prediction=target)
    torch.testing.assert_close(found, x0.expand_as(found), rtol=0, atol=1e-4)


def test_variance_is_preserved_at_every_timestep() -> None:
    process = DiffusionProcess(DiffusionSettings(timesteps=37))
    assert process.alphas.shape == (37,)
    np.testing.assert_allclose(process.alphas**2 + process.sigmas**2, 1.0, rtol=1e-15)
    assert (np.diff(process.alphas) < 0).all()
