"""Exports: what is saved comes back, and what does not fit is named."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import latentlm
from latentlm.catalogue import build_codec, build_model
from latentlm.codec.image_vit import ImageViTCodec
from latentlm.load import load, load_codec, load_weights, save_codec, save_export
from latentlm.models import DiT, LatentLM
from latentlm.sequence import class_conditional
from latentlm.settings import (
    DiagonalGaussianVariance,
    DiffusionSettings,
    FixedVariance,
    HalfNormalVariance,
    HeadSettings,
    ImageCodecSettings,
    LatentLMSettings,
    TransformerSettings,
)
from making_exports import CODES, SPEECH, make_export

MODEL = LatentLMSettings(
    classes=3,
    latent_count=4,
    latent_width=4,
    width=16,
    depth=2,
    heads=2,
    kv_heads=1,
    ffn_width=24,
    head=HeadSettings(depth=1, ffn_width=24),
    diffusion=DiffusionSettings(schedule="linear", prediction="epsilon", timesteps=50),
)
CODEC = ImageCodecSettings(
    image_size=8,
    channels=1,
    patch_size=4,
    latent_width=4,
    encoder=TransformerSettings(width=8, depth=1, heads=2),
    decoder=TransformerSettings(width=8, depth=1, heads=2),
    variance=HalfNormalVariance(c_sigma=0.1),
)


def make_pair() -> tuple[LatentLM, ImageViTCodec]:
    torch.manual_seed(0)
    model, codec = build_model(MODEL), build_codec(CODEC)
    codec.set_statistics(mean=0.25, std=2.0)
    return model, codec


@pytest.fixture
def export(tmp_path: Path) -> Path:
    model, codec = make_pair()
    save_export(tmp_path / "export", model=model, codec=codec, metadata={"key": "abc"})
    return tmp_path / "export"


def test_an_export_comes_back_whole(export: Path) -> None:
    loaded = latentlm.load(export)  # type: ignore[operator]
    assert loaded.metadata == {"key": "abc"}
    for found, expected in zip(loaded[:2], make_pair(), strict=True):
        assert found.settings == expected.settings
        assert not found.training
        wanted = expected.state_dict()
        assert found.state_dict().keys() == wanted.keys()
        assert all(torch.equal(value, wanted[key]) for key, value in found.state_dict().items())
        assert all(parameter.requires_grad for parameter in found.parameters())
    assert loaded.codec.normalise(torch.ones(1)) == pytest.approx(0.375)
    json.loads((export / "model.json").read_text())


@pytest.mark.parametrize(
    "variance", [HalfNormalVariance(c_sigma=0.1), FixedVariance(), DiagonalGaussianVariance()]
)
def test_codecs_come_back_with_their_own_variance(tmp_path: Path, variance: object) -> None:
    codec = build_codec(dataclasses.replace(CODEC, variance=variance))
    save_codec(tmp_path, codec=codec)
    assert load_codec(tmp_path).settings == codec.settings


def test_a_loaded_model_can_be_trained_on(export: Path) -> None:
    model = load(export).model
    batch = class_conditional(torch.randn(1, 4, 4), torch.tensor([0]))
    model.hidden(batch).sum().backward()
    assert model.latent_projection.weight.grad is not None


def test_speech_settings_come_back_as_they_were(tmp_path: Path) -> None:
    loaded = load(make_export(tmp_path, "speech"))
    assert loaded.codec.settings == SPEECH
    assert loaded.vocabulary is not None


def test_a_dit_comes_back_whole_and_says_what_does_not_fit(tmp_path: Path) -> None:
    export = make_export(tmp_path, "dit")
    model = load(export).model
    assert isinstance(model, DiT)
    other = build_model(model.settings)
    load_weights(other, export)
    wanted = model.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in other.state_dict().items())
    for change in ({"latent_width": 8}, {"classes": 10}, {"depth": 3}, {"width": 32}):
        ((name, size),) = change.items()
        sentence = f"checkpoint has {name} {getattr(model.settings, name)}, settings say {size}"
        with pytest.raises(ValueError, match=sentence):
            load_weights(build_model(dataclasses.replace(model.settings, **change)), export)
    with pytest.raises(ValueError, match="it lacks backbone"):
        load_weights(build_model(dataclasses.replace(MODEL, classes=3)), export)


def test_a_model_of_codes_comes_back_and_needs_its_own_codebook(tmp_path: Path) -> None:
    export = make_export(tmp_path, "codes")
    loaded = load(export)
    assert loaded.codec.settings == CODES
    other = dataclasses.replace(loaded.model.settings, codes=12)
    with pytest.raises(ValueError, match="checkpoint has codes 13, settings say 12"):
        load_weights(build_model(other), export)
    save_codec(export, codec=build_codec(dataclasses.replace(CODES, codebook_size=20)))
    with pytest.raises(ValueError, match="the codec has 20 codes, the model 13"):
        load(export)


def test_weights_of_an_export_start_another_model(export: Path) -> None:
    torch.manual_seed(1)
    other = build_model(MODEL)
    load_weights(other, export)
    assert torch.equal(other.class_embedding.weight, make_pair()[0].class_embedding.weight)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"latent_width": 8}, "checkpoint has latent_width 4, settings say 8"),
        ({"classes": 10}, "checkpoint has classes 3, settings say 10"),
        ({"depth": 3}, "checkpoint has depth 2, settings say 3"),
        ({"width": 32}, "checkpoint has width 16, settings say 32"),
        (
            {"ffn_width": 32},
            r"gate_and_up.weight has shape \(48, 16\), the settings say \(64, 16\)",
        ),
        ({"head": HeadSettings(depth=2, ffn_width=24)}, "it lacks head.blocks.1.feedforward"),
    ],
)
def test_weights_that_do_not_fit_are_named(export: Path, change: dict, sentence: str) -> None:
    other = build_model(dataclasses.replace(MODEL, **change))
    before = other.class_embedding.weight.clone()
    with pytest.raises(ValueError, match=sentence):
        load_weights(other, export)
    assert torch.equal(before, other.class_embedding.weight)


def test_broken_exports_are_named(export: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model.json; give the folder of an export"):
        load(export.parent)
    weights = load_file(export / "codec.safetensors")
    removed = sorted(weights)[0]
    save_file(
        {k: v for k, v in weights.items() if k != removed} | {"x": torch.ones(1)},
        export / "codec.safetensors",
    )
    with pytest.raises(ValueError, match=f"it lacks {removed} and has x besides"):
        load(export)
    (export / "codec.safetensors").unlink()
    with pytest.raises(ValueError, match=r"codec.safetensors does not exist"):
        load(export)
    description = json.loads((export / "codec.json").read_text())
    description["kind"] = "wavelets"
    (export / "codec.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="kind wavelets is none of image_vit"):
        load(export)
    description = json.loads((export / "model.json").read_text())
    description["settings"]["colour"] = "red"
    (export / "model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"does not describe a latent_lm: .*colour"):
        load(export)


def test_a_codec_of_another_width_is_refused(export: Path) -> None:
    save_codec(export, codec=build_codec(dataclasses.replace(CODEC, latent_width=6)))
    with pytest.raises(ValueError, match="codec's latent_width is 6, the model's 4"):
        load(export)


def test_load_is_callable_and_brings_torch_only_when_used() -> None:
    program = """
import sys, latentlm, latentlm.settings
assert "torch" not in sys.modules
try:
    latentlm.load("/nowhere")
except ValueError as problem:
    assert "has no model.json" in str(problem)
else:
    raise SystemExit(1)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
