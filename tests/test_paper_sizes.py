"""The paper's models and recipes against the shipped experiments, counted on the meta device.

Sizes are those the paper states, within 1 %; recipes are compared key by key with its tables and
sections. `model_notes` stands for what the official code says where the paper is silent.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from latentlm.catalogue import AnyCodec, AnyModel, build_codec, build_model
from latentlm_platform.experiment.files import load_experiment
from latentlm_platform.experiment.points import sweep_points
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.planning.estimates import counts
from latentlm_platform.planning.plan import untrainable

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
WITHIN = 0.01


@cache
def experiment(name: str) -> Experiment:
    """The experiment of a file; `FILE@VARIANT` is the first point of that variant of its sweep."""
    file, _, variant = name.partition("@")
    loaded = load_experiment(EXPERIMENTS / f"{file}.yaml")
    if not variant:
        return loaded
    points = sweep_points(loaded)
    return next(one.experiment for one in points if one.values["variant"] == variant)


def model_of(name: str) -> AnyModel:
    with torch.device("meta"):
        return build_model(experiment(name).model_settings())


def codec_of(name: str) -> AnyCodec:
    with torch.device("meta"):
        return build_codec(experiment(name).codec_settings())


def size(module: torch.nn.Module, *prefixes: str) -> int:
    named = module.named_parameters()
    return sum(p.numel() for n, p in named if not prefixes or n.startswith(prefixes))


def backbone_and_head_blocks(module: AnyModel) -> int:
    """What the code's 9.35B and 17.96B count: no embedding, projections, or last modulation."""
    depth = len(module.get_submodule("head.blocks"))
    last = 2 / (3 * depth + 2)
    modulation = size(module, "head.modulation")
    return size(module, "backbone.", "head.blocks.") + round(modulation * (1 - last))


def stated(count: int, millions: float) -> bool:
    return abs(count / 1e6 - millions) <= WITHIN * millions


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("image/scaling/latentlm_medium", 455),  # Table 7
        ("image/scaling/latentlm_large", 1030),
        ("image/scaling/latentlm_xl", 1820),
        ("image/scaling/latentlm_3b", 3680),
        ("image/resolution_384", 1820),  # §3.1.2
        ("image/latentlm_l", 479),  # Table 1
        ("image/latentlm_l_released", 495.2),  # the official code's, counted in model_notes
        ("image/sweeps/paper/sigma_cfg@latentlm", 455),
    ],
)
def test_latent_lm_has_the_stated_size(name: str, millions: float) -> None:
    assert stated(size(model_of(name)), millions)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("image/scaling/dit_medium", 454.3),  # the official DiT's own, counted in model_notes
        ("image/scaling/dit_large", 1028.3),
        ("image/scaling/dit_xl", 1824.0),
        ("image/scaling/dit_3b", 3787.4),  # not 3.68B: 8/3 d leaves this one 3 % above LatentLM
        ("image/sweeps/paper/sigma_cfg@dit", 454.3),
        ("image/throughput/dit_9b", 9719),  # ours, by the same rule: nobody states them
        ("image/throughput/dit_18b", 18959),
    ],
)
def test_dit_has_its_own_size(name: str, millions: float) -> None:
    assert stated(size(model_of(name)), millions)


@pytest.mark.parametrize(("size_of", "millions"), [("9b", 9344.9), ("18b", 17956.9)])
def test_the_largest_count_backbone_and_head_blocks(size_of: str, millions: float) -> None:
    model = model_of(f"image/throughput/latentlm_{size_of}")
    assert abs(backbone_and_head_blocks(model) / 1e6 - millions) < 0.1  # Figure 11, to the digit
    assert size(model) > backbone_and_head_blocks(model)


def test_the_multimodal_backbone_has_1_3_billion_and_the_vocabulary_of_table_8() -> None:
    model = model_of("multimodal/latentlm")
    assert stated(size(model, "backbone.layers."), 1308.6)
    assert size(model, "backbone.layers.") == 24 * (4 * 2048**2 + 3 * 2048 * 6144)
    assert size(model, "token_embedding") == 100_288 * 2048


def test_codes_are_words_and_leave_no_diffusion_head() -> None:
    counted = counts(experiment("multimodal/vq_mllm"))
    words = 2 * (100_288 + 16_384) * 2048  # embedding and softmax head, untied
    assert counted.parameters == 24 * (4 * 2048**2 + 3 * 2048 * 6144) + words
    assert counted.head_parameters == 0


@pytest.mark.parametrize(
    ("name", "depth"), [("speech/tts_15hz", 24), ("speech/tts_12_layers_1600x_32d", 12)]
)
def test_text_to_speech_has_its_layers(name: str, depth: int) -> None:
    model = model_of(name)
    layer = 4 * 1024**2 + 3 * 1024 * 4096
    assert size(model, "backbone.layers.") == depth * layer
    head_blocks = backbone_and_head_blocks(model) - depth * layer
    assert stated(head_blocks, 47.2)  # three of FFN 4096, with AdaLN; counted in model_notes


def test_the_image_codec_has_172_million() -> None:
    assert stated(size(codec_of("image/latentlm_l")), 172)


@pytest.mark.parametrize("rate", ["15", "7_5", "3_75"])
def test_the_speech_encoder_has_about_120_million(rate: str) -> None:
    """The paper's "around", so 2 %: 119.6, 119.9 and 121.1 million."""
    assert abs(size(codec_of(f"speech/tts_{rate}hz"), "encoder.") / 120e6 - 1) < 0.02


ADAMW = {"betas": (0.9, 0.98), "weight_decay": 0.1, "warmup_steps": 100, "clip_norm": 1.0}
DIFFUSION = {"process": "ddpm", "schedule": "cosine", "prediction": "v", "timesteps": 1000}
IMAGES = {
    "corpus.classes": 1000,
    "corpus.image_size": 256,
    "corpus.flip": True,
    **{f"train.optimizer.{key}": value for key, value in ADAMW.items()},
    **{f"model.diffusion.{key}": value for key, value in DIFFUSION.items()},
    "train.ema_decay": 0.9999,
    "train.label_dropout": 0.1,
    "sample.solver": "dpm_solver_pp_2m",
    "sample.steps": 20,
    "evaluate.images": 50_000,
}
IMAGE_CODEC = {
    "codec.patch_size": 16,
    "codec.encoder.width": 768,
    "codec.encoder.depth": 12,
    "codec.decoder.depth": 12,
    "codec.variance.c_sigma": 0.87890625,
    "codec.training.steps": 1_000_912,
    "codec.training.batch_size": 256,
    "codec.training.optimizer.learning_rate": 3e-4,
    "codec.training.optimizer.betas": (0.0, 0.99),
    "codec.training.optimizer.weight_decay": 0.01,
    "codec.training.encoder_layer_decay": 0.65,
    "codec.training.objective.perceptual_weight": 1.0,
    "codec.training.objective.adversarial_weight": 0.5,
    "codec.training.objective.adversarial_start_step": 50_001,
}
LATENT_LM = {"train.timesteps_per_token": 4, "model.rotary": "interleaved"}
TABLE_1 = {
    **IMAGES,
    **IMAGE_CODEC,
    **LATENT_LM,
    "model.width": 1024,
    "model.depth": 32,
    "train.optimizer.learning_rate": 5e-4,
    "train.steps": 250_000,
    "train.batch_size": 2048,
    "sample.cfg_scale": 1.65,
}
TABLE_7 = {  # width, depth, heads, learning rate
    "medium": (1024, 24, 16, 8e-4),
    "large": (1536, 24, 12, 3e-4),
    "xl": (2048, 24, 16, 2e-4),
    "3b": (2560, 32, 20, 1.6e-4),
}
FIGURE_11 = {"9b": (4096, 32, 32, 1.6e-4), "18b": (5120, 40, 40, 1.6e-4)}
DIT_FFN = {1024: 2730, 1536: 4096, 2048: 5461, 2560: 6826, 4096: 10922, 5120: 13653}  # 8/3 d


def scaling(values: tuple[int, int, int, float], *, dit: bool) -> dict[str, Any]:
    width, depth, heads, learning_rate = values
    own: dict[str, Any] = {"model.ffn_width": DIT_FFN[width], "model.kind": "dit"}
    if not dit:
        own = {"model.ffn_width": 4 * width, "model.head.depth": 3, **LATENT_LM}
        own["model.head.ffn_width"] = 4 * width
    return {
        **IMAGES,
        **IMAGE_CODEC,
        **own,
        "model.width": width,
        "model.depth": depth,
        "model.heads": heads,
        "train.optimizer.learning_rate": learning_rate,
        "train.steps": 75_000,
        "train.batch_size": 2048,
        "sample.cfg_scale": 1.75,
    }


def appendix_b(*, dit: bool) -> dict[str, Any]:
    own = {**scaling((1024, 24, 16, 1e-4), dit=dit), **IMAGES}
    own |= {"train.steps": 200_000, "train.batch_size": 256, "sample.cfg_scale": 1.0}
    own |= {"codec.variance.kind": "fixed"}
    return {key: value for key, value in own.items() if key != "codec.variance.c_sigma"}


MULTIMODAL = {
    "corpus.text.proportion": 2,
    "corpus.pairs.proportion": 1,
    "corpus.interleaved.proportion": 1,
    "corpus.sequence_tokens": 4096,
    "model.depth": 24,
    "model.width": 2048,
    "model.ffn_width": 6144,
    "model.vocabulary": 100_288,
    "model.heads": 16,
    "model.stop": "count",
    "train.optimizer.betas": (0.9, 0.98),
    "train.optimizer.learning_rate": 3e-4,
    "train.optimizer.warmup_steps": 500,
    "train.optimizer.weight_decay": 0.1,
    "train.batch_size": 4 * 2**20 // 4096,
    "train.steps": 50_000,
    "train.optimizer.schedule_steps": -(-(10**12) // (4 * 2**20)),
}
SPEECH = {
    "model.stop": "continue",
    "corpus.sample_rate_hz": 24_000,
    "corpus.prompt_seconds": 3.0,
    "codec.channels": 32,
    "codec.variance.c_sigma": 0.390625,
    "model.width": 1024,
    "model.ffn_width": 4096,
    "model.heads": 16,
    "model.head.depth": 3,
    "train.optimizer.betas": (0.9, 0.98),
    "train.optimizer.learning_rate": 7.5e-4,
    "train.optimizer.warmup_steps": 10_000,
    "train.optimizer.weight_decay": 0.01,
    "train.steps": 100_000,
    "sample.cfg_scale": 4.0,
    "sample.steps": 5,
}


def speech(*strides: int, width: int, depth: int = 24) -> dict[str, Any]:
    own = {"codec.strides": strides, "codec.latent_width": width, "model.depth": depth}
    return {**SPEECH, **own}


RECIPES: dict[str, dict[str, Any]] = {
    "image/latentlm_l": {**TABLE_1, "model.ffn_width": 2730, "model.head.depth": 6},
    "image/latentlm_l_released": {**TABLE_1, "model.ffn_width": 2688, "model.head.depth": 8},
    "image/resolution_384": {
        **scaling(TABLE_7["xl"], dit=False), "corpus.image_size": 384, "train.steps": 100_000,
    },
    "image/sweeps/paper/sigma_cfg@latentlm": appendix_b(dit=False),
    "image/sweeps/paper/sigma_cfg@dit": appendix_b(dit=True),
    "multimodal/latentlm": {**MULTIMODAL, **IMAGE_CODEC, "model.head.depth": 6},
    "multimodal/vq_mllm": {
        **MULTIMODAL,
        "codec.codebook_size": 16_384,
        "codec.code_width": 8,
        "codec.training.optimizer.betas": (0.9, 0.95),
        "codec.training.optimizer.learning_rate": 1e-4,
        "codec.training.batch_size": 128,
    },
    "speech/tts_15hz": speech(2, 4, 5, 5, 8, width=32),
    "speech/tts_7_5hz": speech(4, 4, 5, 5, 8, width=64),
    "speech/tts_3_75hz": speech(4, 5, 5, 8, 8, width=128),
    "speech/tts_12_layers_640x_16d": speech(2, 4, 4, 4, 5, width=16, depth=12),
    "speech/tts_12_layers_1600x_16d": speech(2, 4, 5, 5, 8, width=16, depth=12),
    "speech/tts_12_layers_1600x_32d": speech(2, 4, 5, 5, 8, width=32, depth=12),
    **{
        f"image/{folder}/{kind}_{name}": scaling(values, dit=kind == "dit")
        for folder, sizes in (("scaling", TABLE_7), ("throughput", FIGURE_11))
        for name, values in sizes.items()
        for kind in ("latentlm", "dit")
    },
}  # fmt: skip
EXTENDED = {  # a sweep: the file whose recipe it keeps, but for what it varies
    "image/sweeps/paper/cfg": "image/latentlm_l",
    "image/sweeps/paper/gqa": "image/scaling/latentlm_xl",
    "image/sweeps/paper/head_depth": "image/latentlm_l",
    "image/sweeps/paper/prediction_solver": "image/scaling/latentlm_medium",
    "image/sweeps/paper/resolution": "image/scaling/latentlm_xl",
    "image/sweeps/paper/size": "image/scaling/latentlm_medium",
    "image/sweeps/paper/steps": "image/latentlm_l",
    "image/sweeps/paper/timesteps_per_token": "image/scaling/latentlm_medium",
    "multimodal/sweeps/alpha": "multimodal/latentlm",
    "multimodal/sweeps/tokens": "multimodal/latentlm",
    "speech/sweeps/cfg": "speech/tts_15hz",
    "speech/sweeps/compression": "speech/tts_12_layers_1600x_16d",
    "speech/sweeps/steps": "speech/tts_15hz",
}
MODELS_OF_FIGURE_8 = {"latentlm": "multimodal/latentlm", "vq_mllm": "multimodal/vq_mllm"}
TOLD = ("name", "question", "reproduces", "sweep")  # of an experiment, not of what it computes
SAME = {  # a variant: the file that it has to be equal to
    **{
        f"image/sweeps/paper/size@{name}": f"image/scaling/{name}"
        for name in (f"{kind}_{size}" for kind in ("latentlm", "dit") for size in TABLE_7)
    },
    "image/sweeps/paper/resolution@latentlm_xl": "image/scaling/latentlm_xl",
    "image/sweeps/paper/resolution@resolution_384": "image/resolution_384",
    **{
        f"speech/sweeps/compression@{name}": f"speech/{name}"
        for name in (f"tts_12_layers_{one}" for one in ("640x_16d", "1600x_16d", "1600x_32d"))
    },
}


def computed(one: Experiment) -> dict[str, Any]:
    return one.model_dump(mode="json", exclude=set(TOLD))


def value_at(one: Experiment, path: str) -> Any:
    value: Any = one
    for part in path.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_is_the_papers(name: str) -> None:
    one = experiment(name)
    differing = {
        path: (value_at(one, path), expected)
        for path, expected in RECIPES[name].items()
        if value_at(one, path) != expected
    }
    assert not differing


@pytest.mark.parametrize("name", EXTENDED)
def test_a_sweep_varies_nothing_but_what_it_lists(name: str) -> None:
    assert computed(experiment(name)) == computed(experiment(EXTENDED[name]))


@pytest.mark.parametrize("name", SAME)
def test_a_variant_is_the_file_of_its_name(name: str) -> None:
    assert computed(experiment(name)) == computed(experiment(SAME[name]))


def test_every_variant_at_paper_scale_is_held_against_a_file_or_a_recipe() -> None:
    held = {*RECIPES, *SAME, *(f"multimodal/sweeps/tokens@{name}" for name in MODELS_OF_FIGURE_8)}
    for name in EXTENDED.keys() | {"image/sweeps/paper/sigma_cfg"}:
        sweep = experiment(name).sweep
        assert sweep is not None
        assert {f"{name}@{variant}" for variant in sweep.variants} <= held


@pytest.mark.parametrize(("variant", "file"), MODELS_OF_FIGURE_8.items())
def test_token_counts_are_points_of_one_training_of_the_file(variant: str, file: str) -> None:
    loaded, whole = experiment("multimodal/sweeps/tokens"), computed(experiment(file))
    points = [p for p in sweep_points(loaded) if p.values["variant"] == variant]
    tokens_per_step = 4 * 2**20
    billions = [p.experiment.train.steps * tokens_per_step / 1e9 for p in points]
    assert [round(count) for count in billions] == [52, 105, 157, 210]
    for point in points:
        found = computed(point.experiment)
        found["train"]["steps"] = whole["train"]["steps"]
        assert found == whole
    assert points[-1].experiment.train.steps == whole["train"]["steps"]


def test_every_paper_scale_experiment_has_a_recipe_here() -> None:
    names = {
        str(path.relative_to(EXPERIMENTS).with_suffix(""))
        for path in EXPERIMENTS.rglob("*.yaml")
        if "shared" not in path.parts and path.name != "recorded.yaml"
    }
    held = {name.partition("@")[0] for name in RECIPES} | EXTENDED.keys()
    assert {name for name in names if experiment(name).train.gpus_per_worker} == held


@pytest.mark.parametrize(
    ("name", "steps", "batch", "epochs"),
    [
        ("image/latentlm_l", 250_000, 2048, 400),  # §3.1.1: "about 400"
        ("image/scaling/latentlm_xl", 75_000, 2048, 120),  # §3.1.2: "approximately 120"
        ("image/sweeps/paper/sigma_cfg@dit", 200_000, 256, 40),  # App. B: "approximately 40"
    ],
)
def test_steps_and_batch_make_the_stated_epochs(
    name: str, steps: int, batch: int, epochs: int
) -> None:
    train, records = experiment(name).train, experiment(name).corpus.records
    assert records is not None
    assert (train.steps, train.batch_size) == (steps, batch)
    assert train.steps * train.batch_size / records == pytest.approx(epochs, rel=0.01)


def test_the_codec_is_trained_for_200_epochs_and_latents_come_at_the_stated_rates() -> None:
    one = experiment("image/latentlm_l")
    training, records = one.codec.training, one.corpus.records
    assert records is not None
    assert training.steps * training.batch_size / records == pytest.approx(200, abs=1e-3)
    assert one.model_settings().latent_count == 256
    for name, rate_hz in (
        ("15hz", 15), ("7_5hz", 7.5), ("3_75hz", 3.75), ("12_layers_640x_16d", 37.5),
    ):  # fmt: skip
        settings: Any = experiment(f"speech/tts_{name}").codec_settings()
        assert settings.sample_rate_hz / settings.hop == rate_hz


def test_what_is_swept_for_figure_6() -> None:
    loaded = experiment("image/sweeps/paper/sigma_cfg")
    assert loaded.sweep is not None
    assert set(loaded.sweep.grid) == {"codec", "sample.cfg_scale"}
    assert 1.0 in loaded.sweep.grid["sample.cfg_scale"]
    points = sweep_points(loaded)
    beta: dict[str, set[float]] = {"fixed": set(), "diagonal_gaussian": set()}
    for point in points:
        codec: Any = point.experiment.codec
        beta[codec.variance.kind].add(codec.training.objective.beta)
    assert beta == {"fixed": {1e-2}, "diagonal_gaussian": {1e-6}}  # LDM's for its own, the stars


def test_what_cannot_be_trained_yet_says_so() -> None:
    refused = {name: untrainable(experiment(name)) for name in RECIPES}
    trainable = {name for name, sentence in refused.items() if sentence is None}
    assert trainable == {name for name in RECIPES if "image/" in name}
    assert "corpus.kind = transcribed_speech" in (refused["speech/tts_15hz"] or "")


@pytest.mark.parametrize("build", [model_of, codec_of])
def test_counting_is_not_vacuous(build: Callable[[str], torch.nn.Module]) -> None:
    module = build("image/latentlm_l")
    assert all(parameter.is_meta for parameter in module.parameters())
    assert not stated(size(module), 1.02 * size(module) / 1e6)
