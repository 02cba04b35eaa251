"""What a run writes about its codec's variance and its model's exposure bias, without a Ray."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from latentlm.load import load
from latentlm.settings import SamplerSettings
from latentlm_platform.corpora.splits import open_splits
from latentlm_platform.evaluation.actor import EvaluatorActor
from latentlm_platform.evaluation.codec_scores import latent_health, score_codec
from latentlm_platform.evaluation.exposure import Exposure, expose_images, merged
from latentlm_platform.evaluation.held_out import Images
from latentlm_platform.experiment.sections import Evaluate
from making_corpora import corpus, write_class_folders
from making_exports import make_export

SCALES = (1.0, 2.0)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export(tmp_path_factory.mktemp("export"), "classes")


@pytest.fixture(scope="module")
def actor(export: Path) -> EvaluatorActor:
    actor = EvaluatorActor(extractor="efficientnet_lite0", feature_size=32)
    actor.use_export(export)
    return actor


def exposed(actor: EvaluatorActor, rows: slice) -> dict[float, Any]:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (48, 8, 8, 1), dtype=np.uint8)
    ids = np.arange(48)
    images = Images(pixels[rows], (ids % 3)[rows], ids[rows])
    return expose_images(actor, images, cfg_scales=SCALES, sampler=SamplerSettings(steps=3), seed=0)


def test_batches_of_images_merge_to_the_exposure_of_all(actor: EvaluatorActor) -> None:
    whole = exposed(actor, slice(None))
    parts = merged([exposed(actor, slice(0, 20)), exposed(actor, slice(20, None))])
    assert set(whole) == set(parts) == set(SCALES)
    for scale in SCALES:
        assert parts[scale].metrics() == pytest.approx(whole[scale].metrics(), rel=1e-3)
        assert whole[scale].metrics()["exposure_bias_images"] == 48
        assert len(whole[scale].rows()) == 4
    different = whole[2.0].metrics()["exposure_bias"] / whole[1.0].metrics()["exposure_bias"]
    assert abs(different - 1) > 1e-3


def test_real_latents_are_drawn_with_the_codecs_noise_and_normalised(
    actor: EvaluatorActor, export: Path
) -> None:
    codec = load(export).codec
    found = exposed(actor, slice(None))[1.0].rows()
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (48, 8, 8, 1), dtype=np.uint8)
    with torch.no_grad():
        signal = torch.from_numpy(pixels).movedim(-1, 1) / 127.5 - 1
        mean_BNZ = codec.normalise(codec.encode(signal).mean_BNZ)
    noise_variance = 0.1 / 2.0**2  # C_σ over the square of the export's latent_std
    for n, row in enumerate(found):
        expected = math.sqrt(float(mean_BNZ[:, n].var(0).mean()) + noise_variance)
        assert row["real_std"] == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("images", [1, 15])
def test_too_few_images_are_refused_where_they_are_set(images: int) -> None:
    (problem,) = Evaluate(exposure_bias_images=images).problems()
    assert problem[0] == "exposure_bias_images"
    assert not list(Evaluate(exposure_bias_images=16).problems())


def test_no_images_or_no_next_token_model_measure_nothing() -> None:
    wanted = ((0, "latent_lm", False), (16, "dit", False), (16, "latent_lm", True))
    for images, kind, there_is in wanted:
        evaluate = SimpleNamespace(exposure_bias_images=images)
        experiment: Any = SimpleNamespace(evaluate=evaluate, model=SimpleNamespace(kind=kind))
        assert Exposure().applies(experiment) == there_is


def test_a_codec_is_scored_with_a_table_of_its_channels(export: Path, tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "corpus", classes=3, images_a_class=8, size=8)
    settings = corpus(source=str(source), channels=1, held_out_fraction=0.5, layout="folder")
    held_out = open_splits(settings, seed=0).held_out
    score_codec(export, held_out, folder=tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    channels = json.loads((tmp_path / "variance.json").read_text())
    assert [row["channel"] for row in channels] == [0, 1, 2, 3]
    assert scores["posterior_noise_std_mean"] == pytest.approx(math.sqrt(0.1))
    for row in channels:
        assert row["mu_std"] == pytest.approx(scores[f"latent_mu_std_channel_{row['channel']}"])
    assert scores["noise_to_signal_max"] == max(row["noise_to_signal"] for row in channels)
    collapsed = sum(row["variance_collapsed"] for row in channels)
    assert scores["variance_collapsed_channels"] == collapsed


def test_a_codec_of_codes_is_scored_by_its_codebooks_use(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "corpus", classes=3, images_a_class=8, size=8)
    settings = corpus(source=str(source), channels=1, held_out_fraction=0.5, layout="folder")
    held_out = open_splits(settings, seed=0).held_out
    export = make_export(tmp_path, "codes")
    score_codec(export, held_out, folder=tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores) == {
        "reconstruction_psnr", "reconstruction_ssim", "codebook_used_fraction",
        "codebook_perplexity",
    }  # fmt: skip
    used = 13 * scores["codebook_used_fraction"]
    assert 1 <= scores["codebook_perplexity"] <= used == pytest.approx(round(used))
    assert (tmp_path / "reconstructions.png").exists()
    assert not (tmp_path / "variance.json").exists()
    nothing: Any = None
    assert latent_health(load(export).codec, nothing) == {}
