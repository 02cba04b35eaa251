"""Runs in MLflow of the shape that the platform writes, for the views: images as they are written
today, speech and multimodal as their experiments and scores are named, for nothing trains them yet.

Their values are formulas, not measurements; every run says so in its name.
"""

import functools
import math
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities import Metric, Param

from latentlm_platform.experiment.files import load_experiment
from latentlm_platform.tracking.protocol import flatten

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
STEPS = (100, 200, 300, 400)
EVALUATIONS = 36
PICTURED = 10  # MLflow's image grid shows no more
FRECHET = "frechet_efficientnet_lite0"
SPEECH = {
    "speaker_similarity_resemblyzer": 0.7,
    "speaker_similarity_resemblyzer_reconstruction": 0.87,
    "wer_whisper_tiny_en": 0.05,
    "wer_whisper_tiny_en_reconstruction": 0.03,
    "wer_pocketsphinx": 0.2,
    "distillmos": 3.5,
    "latents_per_audio_second": 15.0,
    "mel_distance": 0.9,
    "pesq": 2.7,
    "stoi": 0.92,
    "visqol": 4.2,
}
MULTIMODAL = {
    "text_perplexity": 12.0,
    "caption_perplexity": 9.0,
    FRECHET: 150.0,
    "image_text_similarity_efficientnet_lite0_minilm": 0.3,
    "cider": 0.5,
    "vqa_accuracy": 0.4,
}


class TrackedRuns:
    """Writes runs into one experiment of a store, in few calls."""

    def __init__(self, client: Any, experiment_id: str) -> None:
        self.client, self.experiment_id = client, experiment_id

    def write(
        self,
        kind: str,
        name: str,
        *,
        parameters: dict[str, Any] | None = None,
        metrics: dict[str, float] | None = None,
        curves: dict[str, float] | None = None,
        tags: dict[str, str] | None = None,
        parent: str | None = None,
    ) -> str:
        """One run; `curves` are values that fall from 2 × to 1 × over STEPS."""
        family = {"mlflow.parentRunId": parent} if parent else {}
        named = {
            "latentlm.kind": kind,
            "latentlm.key": f"{zlib.crc32(name.encode()):08x}",
            **family,
        }
        made = self.client.create_run(
            self.experiment_id, run_name=f"made up: {name}", tags=named | (tags or {})
        )
        run_id: str = made.info.run_id
        now = time.time_ns() // 1_000_000
        rows = [Metric(key, value, now, 0) for key, value in (metrics or {}).items()]
        for index, step in enumerate(STEPS):
            share = 2 - index / (len(STEPS) - 1)
            rows += [Metric(k, v * share, now + step, step) for k, v in (curves or {}).items()]
        texts = [Param(key, str(value)) for key, value in (parameters or {}).items()]
        self.client.log_batch(run_id, metrics=rows, params=texts[:100])
        for start in range(100, len(texts), 100):
            self.client.log_batch(run_id, params=texts[start : start + 100])
        self.client.set_terminated(run_id, "FINISHED")
        return run_id

    def picture(self, run_id: str, key: str, step: int) -> None:
        pixels = np.random.default_rng(step).integers(0, 255, (32, 96, 3), dtype=np.uint8)
        self.client.log_image(run_id, pixels, key=key, step=step)


@functools.cache
def settings_of(path: str) -> dict[str, str]:
    """Every parameter that a run of this experiment has, dotted."""
    experiment = load_experiment(str(EXPERIMENTS / path), overrides=[])
    return flatten(experiment.model_dump(mode="json", exclude={"sweep"}))


def write_every_track(client: Any, experiment_id: str) -> None:
    """All that the shipped views are about, in one experiment."""
    runs = TrackedRuns(client, experiment_id)
    _write_images(runs)
    for index in range(8):
        _write_speech(runs, index)
    for index in range(6):
        _write_multimodal(runs, index)


def _write_images(runs: TrackedRuns) -> None:
    image = settings_of("quickstart.yaml")
    system = {
        "system/cpu_utilization_percentage": 45.0,
        "system/system_memory_usage_percentage": 20,
    }
    parents = [
        runs.write(
            "run",
            f"images {index}",
            parameters=image,
            metrics={
                "bad_records": 2.0 + index,
                "bad_records_truncated_image": 1.0 + index,
                "bad_records_not_an_image": 1.0,
                "run_seconds": 600.0 + index,
            },
            curves=system,
            tags={"latentlm.hardware": "2 × made up"},
        )
        for index in range(2)
    ]
    for index in range(4):
        _write_codec(runs, index, parent=parents[0])
        _write_model(runs, index, parent=parents[index % 2])
    for index in range(EVALUATIONS):
        run_id = write_evaluation(runs, index, parent=parents[index % 2])
        if index < PICTURED:
            runs.picture(run_id, "samples", 0)
            runs.picture(run_id, "trajectory", 0)
    diverged = {FRECHET: math.nan, "generated_accuracy": math.inf}
    odd = 'l\'été "σ" <b>größer</b> 😀'
    runs.write("evaluation", odd, parameters=image | {"cfg_scale": 9}, metrics=diverged)


def _write_codec(runs: TrackedRuns, index: int, *, parent: str) -> None:
    sigma = (0.1, 0.25, 0.5, 1.0)[index]
    noises = (0, 0.25, 0.5, 1, 2)
    run_id = runs.write(
        "codec",
        f"codec sigma={sigma}",
        parameters=settings_of("quickstart.yaml") | {"codec.variance.sigma": sigma},
        curves={"loss": 0.05, "loss_pixel": 0.04, "loss_regulariser": 0.5, "gradient_norm": 0.2}
        | {"learning_rate": 1e-3, "items_per_s": 600.0},
        metrics={
            "reconstruction_psnr": 21.0 - 3 * sigma,
            "reconstruction_ssim": 0.7,
            "variance_collapsed_channels": 4.0 - index,
            "posterior_collapsed_channels": 1.0,
            "noise_share": sigma / 2,
            "noise_to_signal_median": sigma,
            "latent_std": 0.5 + sigma,
        }
        | {
            f"reconstruction_psnr_sigma_{n:g}": 21.0 - 3 * sigma - n * 4 / (1 + sigma)
            for n in noises
        },
        parent=parent,
    )
    runs.picture(run_id, "reconstructions", 400)


def _write_model(runs: TrackedRuns, index: int, *, parent: str) -> None:
    bins = {f"loss_timestep_bin_{i}": 0.5 + i / 20 for i in range(10)}
    runs.write(
        "model",
        f"model seed={index}",
        parameters=settings_of("quickstart.yaml"),
        curves={
            "loss": 0.6 + index / 50,
            "validation_loss": 0.62 + index / 50,
            "gradient_norm": 0.2,
            "learning_rate": 1e-3,
            "items_per_s": 1200.0 - 90 * index,
            "latents_per_s": 19000.0 - 900 * index,
            "mfu": 0.09,
            **bins,
        },
        parent=parent,
    )


def write_evaluation(runs: TrackedRuns, index: int, *, parent: str | None = None) -> str:
    """The image evaluation of this number: settings run through coprime cycles, so that any two of
    them span a plane."""
    kind = ("latent_lm", "dit")[index % 2]
    sigma = (0.1, 0.25, 0.5, 1.0)[index // 2 % 4]
    scale = (1.0, 1.5, 2.0, 3.0, 4.0)[index % 5]
    steps = (5, 10, 20)[index % 3]
    patch, width = (4, 8, 16)[index // 4 % 3], (8, 16, 32)[index % 3]
    quality = 2 + abs(scale - 2) + abs(sigma - 0.4) + 3 / steps + patch / 16
    values = {
        "model.kind": kind,
        "model.width": (32, 64, 128)[index // 5 % 3],
        "model.depth": (2, 3, 4)[index // 5 % 3],
        "model.ffn_width": (96, 192, 384)[index // 5 % 3],
        "model.kv_heads": (1, 2, 4)[index // 7 % 3],
        "codec.variance.kind": "fixed",
        "codec.variance.sigma": sigma,
        "codec.training.objective.beta": (1e-6, 1e-4, 1e-2)[index // 3 % 3],
        "codec.patch_size": patch,
        "codec.latent_width": width,
        "corpus.image_size": (16, 24, 32)[index // 4 % 3],
        "evaluate.batch_size": (64, 128, 256)[index // 2 % 3],
        "sample.steps": steps,
        "sample.cfg_scale": scale,
        "sample.temperature": (0.9, 1.0, 1.1)[index // 6 % 3],
        "train.steps": (600, 1200, 2400)[index // 6 % 3],
        "variant": kind,
        "cfg_scale": scale,
        "solver": "dpm_solver_pp_2m",
        "solver_steps": steps,
        "images": 500,
    }
    name = f"cfg {scale:g} variant={kind} sigma={sigma} steps={steps} #{index}"
    return runs.write(
        "evaluation",
        name,
        parameters=settings_of("quickstart.yaml") | values,
        metrics=_image_scores(quality, steps=steps)
        | {"model_parameters": (25e3, 100e3, 400e3)[index // 5 % 3]},
        parent=parent,
    )


def _image_scores(quality: float, *, steps: int) -> dict[str, float]:
    return {
        FRECHET: 500 * quality,
        f"{FRECHET}_low": 480 * quality,
        f"{FRECHET}_high": 520 * quality,
        f"{FRECHET}_floor": 480.0,
        f"{FRECHET}_reconstruction": 300 * quality,
        f"{FRECHET}_above_reconstruction": 200 * quality,
        "inception_style_efficientnet_lite0": 9 - quality,
        "generated_accuracy": 1 - quality / 20,
        "generated_accuracy_low": 0.97 - quality / 20,
        "generated_accuracy_high": 1.02 - quality / 20,
        "real_accuracy": 0.88,
        "reconstruction_psnr": 24 - quality,
        "reconstruction_ssim": 0.7,
        "sampling_cpu_seconds_per_image": steps / 4000,
        "exposure_bias": quality / 10,
        "exposure_bias_floor": 0.01,
        "exposure_bias_last": quality / 8,
        "teacher_forced_error": quality / 20,
    }


def _write_speech(runs: TrackedRuns, index: int) -> None:
    width = (16, 32, 64, 128)[index % 4]
    values = {
        "codec.strides": ("[2, 4, 4, 4, 5]", "[2, 4, 5, 5, 8]")[index % 2],
        "codec.latent_width": width,
        "corpus.prompt": ("prefix", "same_speaker")[index // 4],
        "cfg_scale": (1.0, 2.0, 4.0)[index % 3],
        "solver_steps": (3, 5, 10, 20)[index // 2],
        "solver": "dpm_solver_pp_2m",
    }
    share = 1 + width / 500 - index / 40
    scores = {key: value * share for key, value in SPEECH.items()}
    settings = settings_of("speech/tts_15hz.yaml") | values
    name = f"speech schema, width={width} #{index}"
    runs.write("evaluation", name, parameters=settings, metrics=scores)
    if index < 4:
        runs.write("codec", f"{name} codec", parameters=settings, metrics=scores)


def _write_multimodal(runs: TrackedRuns, index: int) -> None:
    path = ("multimodal/latentlm.yaml", "multimodal/vq_mllm.yaml")[index % 2]
    values = {"train.steps": 12500 * (1 + index // 2), "train.alpha": (0.3, 1.0, 3.0)[index % 3]}
    share = 1.2 - index / 20
    run_id = runs.write(
        "evaluation",
        f"multimodal schema #{index}",
        parameters=settings_of(path) | values | {"cfg_scale": 3.0},
        metrics={key: value * share for key, value in MULTIMODAL.items()},
    )
    runs.picture(run_id, "samples", 0)
    runs.picture(run_id, "trajectory", 0)
