"""The forward process against diffusers, and the round trip through every kind of target."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from latentlm.diffusion.head import sinusoid
from latentlm.diffusion.process import DiffusionProcess
from latentlm.settings import DiffusionSettings

SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
KINDS = [
    DiffusionSettings(schedule="cosine", prediction="v"),
    DiffusionSettings(schedule="cosine", prediction="epsilon"),
    DiffusionSettings(schedule="linear", prediction="x0"),
    DiffusionSettings(process="flow", prediction="velocity"),
    DiffusionSettings(process="flow", prediction="epsilon"),
    DiffusionSettings(process="flow", prediction="x0"),
]


def name_of(settings: DiffusionSettings) -> str:
    return f"{settings.process}-{settings.prediction}"


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


def test_flow_noises_as_diffusers_does_and_predicts_the_slope_of_its_path() -> None:
    process = DiffusionProcess(DiffusionSettings(process="flow", prediction="velocity"))
    reference = FlowMatchEulerDiscreteScheduler()
    times = reference.timesteps[[0, 1, 250, 999]]
    x0, epsilon = torch.randn(4, 16), torch.randn(4, 16)
    x_t = process.noised(x0, times, epsilon=epsilon)
    torch.testing.assert_close(x_t, reference.scale_noise(x0, times, epsilon), rtol=0, atol=1e-6)
    ahead = process.noised(x0, times + 0.5, epsilon=epsilon)
    behind = process.noised(x0, times - 0.5, epsilon=epsilon)
    slope = (ahead - behind) * process.settings.timesteps  # the velocity is d x / d σ
    target = process.target(x0, times, epsilon=epsilon)
    torch.testing.assert_close(slope, target, rtol=0, atol=2e-3)


@pytest.mark.parametrize("settings", KINDS, ids=name_of)
def test_a_right_prediction_gives_the_data_back(settings: DiffusionSettings) -> None:
    process = DiffusionProcess(settings)
    times = torch.arange(0, 900, 50).view(1, -1)
    if settings.process == "flow":
        times = times + 0.37
    x0, epsilon = torch.randn(2, 1, 8), torch.randn(2, 18, 8)
    x_t = process.noised(x0, times, epsilon=epsilon)
    target = process.target(x0, times, epsilon=epsilon)
    assert x_t.shape == target.shape == epsilon.shape
    assert x_t.dtype == torch.float32
    found = process.to_x0(x_t, times, prediction=target)
    torch.testing.assert_close(found, x0.expand_as(found), rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", KINDS, ids=name_of)
def test_tensors_and_tables_hold_the_same_levels_and_coefficients(
    settings: DiffusionSettings,
) -> None:
    process = DiffusionProcess(settings)
    times = torch.tensor([[0, 3, 500], [700, 998, 999]])
    exact = process.exact_levels(times.numpy())
    for found, expected in zip(process.levels(times), exact, strict=True):
        assert found.shape == (2, 3, 1)
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found[..., 0], expected.astype(np.float32))
    np.testing.assert_array_equal(exact[0], process.alphas[times])
    np.testing.assert_array_equal(exact[1], process.sigmas[times])
    from_x, from_prediction = process.x0_coefficients(*exact)
    x_t, prediction = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    expected = from_x[..., None] * x_t.numpy() + from_prediction[..., None] * prediction.numpy()
    found = process.to_x0(x_t, times, prediction=prediction)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_ddpm_preserves_the_variance_and_flow_the_sum_at_every_time() -> None:
    ddpm = DiffusionProcess(DiffusionSettings(timesteps=37))
    assert ddpm.alphas.shape == (37,)
    np.testing.assert_allclose(ddpm.alphas**2 + ddpm.sigmas**2, 1.0, rtol=1e-15)
    flow = DiffusionProcess(DiffusionSettings(process="flow", prediction="x0", timesteps=37))
    np.testing.assert_allclose(flow.alphas + flow.sigmas, 1.0, rtol=1e-15)
    for process in (ddpm, flow):
        assert (np.diff(process.alphas) < 0).all()
    alpha, sigma = flow.levels(torch.tensor([0.0, 18.5, 37.0]))
    assert alpha.flatten().tolist() == [1.0, 0.5, 0.0]
    assert sigma.flatten().tolist() == [0.0, 0.5, 1.0]


def test_bins_are_equal_parts_of_the_process() -> None:
    ddpm = DiffusionProcess(DiffusionSettings())
    flow = DiffusionProcess(DiffusionSettings(process="flow", prediction="velocity"))
    found = ddpm.bin_of(torch.arange(1000).view(10, 100), 10)
    assert found.dtype == torch.int64
    assert torch.equal(found, torch.arange(10)[:, None].expand(10, 100))
    times = torch.tensor([0.0, 99.99, 100.0, 555.5, 999.99, 1000.0])
    assert flow.bin_of(times, 10).tolist() == [0, 0, 1, 5, 9, 9]
    odd = DiffusionProcess(DiffusionSettings(timesteps=7))
    assert odd.bin_of(torch.arange(7), 3).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_one_sinusoid_serves_integer_and_real_times() -> None:
    assert torch.equal(sinusoid(torch.arange(1000)), sinusoid(torch.arange(1000.0)))
    times = torch.arange(0, 1000, 0.25)
    found = sinusoid(times)
    assert found.dtype == torch.float32
    assert len(found.unique(dim=0)) == 4000
    angles = times.double()[:, None] * 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    torch.testing.assert_close(found[:, :128].double(), angles.cos(), rtol=0, atol=1e-4)


def test_settings_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match=r"diffusion.prediction: v belongs to ddpm"):
        DiffusionProcess(DiffusionSettings(process="flow"))


def test_a_process_first_used_in_inference_mode_can_train() -> None:
    process = DiffusionProcess(DiffusionSettings())
    times = torch.tensor([3, 900])
    with torch.inference_mode():
        process.noised(torch.zeros(2, 1), times, epsilon=torch.ones(2, 1))
    x0 = torch.zeros(2, 1, requires_grad=True)
    process.noised(x0, times, epsilon=torch.ones(2, 1)).sum().backward()
    assert x0.grad is not None
    torch.testing.assert_close(x0.grad, process.levels(times)[0])
