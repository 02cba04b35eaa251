"""The model sections of the schema and the settings they become; the seed of training alone."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latentlm.models import flops_per_item
from latentlm.settings import CodeLMSettings, DiTSettings, LatentLMSettings
from latentlm_platform.corpora.splits import Splits
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.files import load_experiment
from latentlm_platform.experiment.models import CodeModel, DiTModel, Model
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.latents.cache import LatentCache
from latentlm_platform.planning.estimates import counts, generate_flops, unknown_pace
from latentlm_platform.planning.plan import untrainable
from latentlm_platform.training.inputs import ModelInputs

EXPERIMENTS = Path(__file__).parents[3] / "experiments"


def small_dit(folder: Path, *overrides: str) -> Experiment:
    """The quickstart with the fragment that makes its model a DiT."""
    return quickstart_as("small_dit", folder, *overrides)


def quickstart_as(fragment: str, folder: Path, *overrides: str) -> Experiment:
    """The quickstart with one more fragment."""
    file = folder / f"{fragment}.yaml"
    up = "../" * len(folder.resolve().parts[1:])
    base = f"{up}{str(EXPERIMENTS.resolve())[1:]}"
    file.write_text(f"extends: [{base}/quickstart.yaml, {base}/shared/{fragment}.yaml]\n")
    return load_experiment(file, overrides=overrides)


@pytest.mark.parametrize(
    ("section", "settings"),
    [(Model, LatentLMSettings), (DiTModel, DiTSettings), (CodeModel, CodeLMSettings)],
)
def test_defaults_are_written_twice_and_agree(section: type, settings: type) -> None:
    fields = section.model_fields  # type: ignore[attr-defined]
    unshared = {field.name for field in dataclasses.fields(settings)} - set(fields)
    compared = 0
    for field in dataclasses.fields(settings):
        if field.default is dataclasses.MISSING or field.name in ("kind", *unshared):
            continue
        assert fields[field.name].default == field.default, field.name
        compared += 1
    assert compared >= 1


def test_the_small_dit_is_as_large_as_the_small_latentlm(tmp_path: Path) -> None:
    dit, latentlm = small_dit(tmp_path), load_experiment(EXPERIMENTS / "quickstart.yaml")
    assert isinstance(dit.model, DiTModel)  # and no head of the LatentLM is left in it
    assert not hasattr(dit.model, "head")
    shared = {"name", "model", "train"}
    assert dit.model_dump(exclude=shared) == latentlm.model_dump(exclude=shared)
    assert dit.model.diffusion == latentlm.model.diffusion
    sizes = [counts(one).parameters for one in (dit, latentlm)]
    assert sizes == [1_394_048, 1_400_192]


def test_small_codes_are_as_large_as_the_small_latentlm(tmp_path: Path) -> None:
    codes = quickstart_as("small_vq", tmp_path)
    latentlm = load_experiment(EXPERIMENTS / "quickstart.yaml")
    shared = {"name", "codec", "model"}
    assert codes.model_dump(exclude=shared) == latentlm.model_dump(exclude=shared)
    assert codes.codec.training == latentlm.codec.training
    for name, expected in (("parameters", [1_402_240, 1_400_192]),
                           ("codec_parameters", [1_155_949, 1_231_568]),
                           ("tokens_per_step", [1024, 1024])):  # fmt: skip
        assert [getattr(counts(one), name) for one in (codes, latentlm)] == expected
    assert untrainable(codes) is None
    assert unknown_pace(codes) is not None  # convolutions have another pace


def test_a_dit_has_no_order_that_guidance_could_follow(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rising follows latents one after another; a dit draws"):
        small_dit(tmp_path, "sample.guidance_schedule=rising")


def test_a_dit_works_whole_at_every_time_and_step(tmp_path: Path) -> None:
    one = small_dit(tmp_path)
    settings, counted = one.model_settings(), counts(one)
    assert unknown_pace(one) is None
    assert counted.flops_per_step == one.train.batch_size * flops_per_item(settings, 1)
    four = counts(small_dit(tmp_path, "train.timesteps_per_token=4"))
    assert four.flops_per_step == 4 * counted.flops_per_step
    decoder = 16 * counted.codec_parameters
    for scale, rows in ((1.0, 1), (3.0, 2)):
        asked = small_dit(tmp_path, f"sample.cfg_scale={scale}", "sample.steps=7")
        forward = flops_per_item(settings, 1) / 3
        assert generate_flops(asked, counted) == pytest.approx(7 * rows * forward + decoder)


def test_training_draws_with_its_own_seed_and_nothing_else_does(tmp_path: Path) -> None:
    plain, own = (
        load_experiment(EXPERIMENTS / "quickstart.yaml", overrides=["seed=3", *more])
        for more in ([], ["train.seed=7"])
    )
    assert (plain.seed, plain.model_seed) == (3, 3)
    assert (own.seed, own.model_seed) == (3, 7)
    split: Any = SimpleNamespace(chunk_sizes=np.array([8, 8]), corpus=plain.corpus)
    splits = Splits(split, split)
    cache = LatentCache(tmp_path, latent_width=16)
    orders = [
        ModelInputs(one, splits, cache, tmp_path).sources({}, rows=1)[0].order
        for one in (plain, own)
    ]
    assert [order.seed for order in orders] == [3, 7]
