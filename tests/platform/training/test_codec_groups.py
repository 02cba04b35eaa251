"""Layer-wise learning rates of a codec, and an encoder that starts from weights on disk."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from latentlm.codec.critics import PatchCritic
from latentlm.codec.image_vit import ImageViTCodec
from latentlm.load import save_codec
from latentlm.settings import FixedVariance, ImageCodecSettings, TransformerSettings
from latentlm_platform.errors import UserError
from latentlm_platform.training.exported_encoder import load_encoder
from latentlm_platform.training.parameter_groups import (
    decay_groups,
    layer_decay_groups,
    set_learning_rate,
)

SIDE = TransformerSettings(width=16, depth=3, heads=2)
SETTINGS = ImageCodecSettings(
    image_size=8,
    channels=3,
    patch_size=4,
    latent_width=2,
    encoder=SIDE,
    decoder=replace(SIDE, depth=5),  # deeper: its depth must not count
    variance=FixedVariance(),
)
DECAY = 0.65


def small_codec(settings: ImageCodecSettings = SETTINGS, *, seed: int = 0) -> ImageViTCodec:
    return ImageViTCodec(settings, generator=torch.Generator().manual_seed(seed))


def expected_scale(name: str) -> float:
    """decay^(L + 1 - layer) of a 3-layer encoder, written out."""
    table = {
        "encoder.patches": DECAY**4,
        "encoder.trunk.position_ND": DECAY**4,
        "encoder.trunk.blocks.0.": DECAY**3,
        "encoder.trunk.blocks.1.": DECAY**2,
        "encoder.trunk.blocks.2.": DECAY,
        "encoder.trunk.norm": 1.0,
        "encoder.head": 1.0,
        "decoder.": 1.0,
    }
    (found,) = (scale for start, scale in table.items() if name.startswith(start))
    return found


@pytest.mark.parametrize("layer_decay", [DECAY, 1.0])
def test_scales_follow_the_formula(layer_decay: float) -> None:
    codec = small_codec()
    groups = layer_decay_groups(codec, weight_decay=0.1, layer_decay=layer_decay)
    names = {parameter: name for name, parameter in codec.named_parameters()}
    seen = [parameter for group in groups for parameter in group["params"]]
    assert len(seen) == len(set(seen)) == len(names)
    for group in groups:
        for parameter in group["params"]:
            wanted = expected_scale(names[parameter]) if layer_decay < 1 else 1.0
            assert group["scale"] == pytest.approx(wanted), names[parameter]
            assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0.0)
    assert len(groups) == (10 if layer_decay < 1 else 2)


def test_without_decay_the_groups_are_the_models() -> None:
    codec = small_codec()
    codec.decoder.requires_grad_(False)
    found = layer_decay_groups(codec, weight_decay=0.1, layer_decay=1.0)
    assert found == [{**group, "scale": 1.0} for group in decay_groups(codec, 0.1)]


def test_a_step_moves_each_layer_by_its_scale() -> None:
    codec = small_codec()
    before = {name: weight.clone() for name, weight in codec.state_dict().items()}
    groups = layer_decay_groups(codec, weight_decay=0.0, layer_decay=DECAY)
    optimizer = torch.optim.AdamW(groups, lr=123.0)
    for parameter in codec.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_learning_rate(optimizer, 1e-2)
    optimizer.step()
    for name, parameter in codec.named_parameters():
        moved = (before[name] - parameter.detach()).mean()
        assert float(moved) == pytest.approx(1e-2 * expected_scale(name), rel=1e-3), name


def test_a_net_without_encoder_blocks_has_no_layers() -> None:
    critic = PatchCritic(3, width=8)
    groups = layer_decay_groups(critic, weight_decay=0.1, layer_decay=1.0)
    assert {group["scale"] for group in groups} == {1.0}
    with pytest.raises(UserError, match=r"encoder_layer_decay = 0\.5 .* PatchCritic has none"):
        layer_decay_groups(critic, weight_decay=0.1, layer_decay=0.5)


@pytest.mark.parametrize("form", ["folder", "safetensors", "pt", "pt of the encoder"])
def test_an_encoder_starts_from_weights_on_disk(tmp_path: Path, form: str) -> None:
    trained, codec = small_codec(seed=1), small_codec()
    decoder = {name: weight.clone() for name, weight in codec.decoder.state_dict().items()}
    save_codec(tmp_path, codec=trained)
    torch.save(trained.state_dict(), tmp_path / "codec.pt")
    torch.save(trained.encoder.state_dict(), tmp_path / "encoder.pt")
    paths = {
        "folder": tmp_path,
        "safetensors": tmp_path / "codec.safetensors",
        "pt": tmp_path / "codec.pt",
        "pt of the encoder": tmp_path / "encoder.pt",
    }
    load_encoder(codec.encoder, paths[form])
    for name, weight in codec.encoder.state_dict().items():
        assert torch.equal(weight, trained.encoder.state_dict()[name]), name
    for name, weight in codec.decoder.state_dict().items():
        assert torch.equal(weight, decoder[name]), name


def sentence_about(encoder: nn.Module, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_encoder(encoder, path)
    sentence = str(caught.value)
    assert sentence.startswith(f"codec.training.encoder_weights = {path}")
    assert "\n" not in sentence
    return sentence


def test_the_first_mismatch_is_named(tmp_path: Path) -> None:
    save_codec(tmp_path, codec=small_codec())
    deeper = small_codec(replace(SETTINGS, encoder=replace(SIDE, depth=4))).encoder
    flatter = small_codec(replace(SETTINGS, encoder=replace(SIDE, depth=2))).encoder
    larger = small_codec(replace(SETTINGS, image_size=12)).encoder
    assert "has no trunk.blocks.3.attention_norm.weight" in sentence_about(deeper, tmp_path)
    assert "has trunk.blocks.2.attention_norm.bias" in sentence_about(flatter, tmp_path)
    found = sentence_about(larger, tmp_path)
    assert "trunk.position_ND of shape (4, 16), but this encoder has (9, 16)" in found


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    encoder = small_codec().encoder
    assert "does not exist" in sentence_about(encoder, tmp_path)
    assert "does not exist" in sentence_about(encoder, tmp_path / "nowhere.pt")
    for suffix in ("pt", "safetensors"):
        path = tmp_path / f"text.{suffix}"
        path.write_text("no weights")
        assert "cannot be read" in sentence_about(encoder, path)
    torch.save({"step": 3}, tmp_path / "state.pt")
    assert "something else than tensors" in sentence_about(encoder, tmp_path / "state.pt")


def test_perceptual_weights_are_asked_for_and_their_errors_are_the_users(tmp_path: Path) -> None:
    from latentlm_platform.experiment.sections import CodecObjective
    from latentlm_platform.training.codec_training import perceptual_net

    lpips = CodecObjective(perceptual_weight=1.0, perceptual_features="vgg16_lpips")
    ((path, sentence),) = lpips.problems()
    assert (path, "no packaged weights" in sentence) == ("perceptual_weights", True)
    ((_, sentence),) = CodecObjective(perceptual_weights="x.pth").problems()
    assert "brings its own weights" in sentence
    missing = lpips.model_copy(update={"perceptual_weights": str(tmp_path / "nowhere.pth")})
    assert not list(missing.problems())
    with pytest.raises(UserError, match=r"perceptual_weights = .*nowhere.pth does not exist"):
        perceptual_net(missing)
