"""One codec's means under another law of noise."""

from pathlib import Path

import pytest
import torch

from latentlm.codec.image_vit import ImageViTCodec
from latentlm.codec.sigma import LatentMoments
from latentlm.load import load_codec, save_codec
from latentlm.randomness import RowNoise
from latentlm.settings import FixedVariance, ImageCodecSettings, TransformerSettings
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.files import load_experiment
from latentlm_platform.latents.drawing import drawing_codec

QUICKSTART = Path(__file__).parents[3] / "experiments" / "quickstart.yaml"
SIDE = TransformerSettings(width=8, depth=1, heads=2)


def test_the_copy_draws_by_the_new_law_and_normalises_what_it_draws(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = ImageCodecSettings(
        image_size=16, channels=1, patch_size=4, latent_width=3, encoder=SIDE, decoder=SIDE,
        variance=FixedVariance(sigma=0.1),
    )  # fmt: skip
    codec = ImageViTCodec(settings)
    codec.set_statistics(mean=0.0, std=1.0)
    save_codec(tmp_path / "source", codec=codec)
    with torch.no_grad():
        posterior = codec.encode(torch.rand(500, 1, 16, 16) * 2 - 1)
    moments = LatentMoments.of_width(3)
    moments.add(posterior.mean_BNZ, None)
    law = FixedVariance(sigma=2.0)
    drawing_codec(tmp_path / "source", variance=law, moments=moments, target=tmp_path / "copy")
    copy = load_codec(tmp_path / "copy")
    noise = RowNoise(seed=0, ids_B=torch.arange(500))
    drawn_BNZ = copy.draw(posterior, noise=noise)
    assert (drawn_BNZ - posterior.mean_BNZ).std() == pytest.approx(2.0, rel=0.02)
    normalised = copy.normalise(drawn_BNZ)
    assert normalised.mean() == pytest.approx(0, abs=0.02)
    assert normalised.std() == pytest.approx(1, rel=0.02)
    kept = load_codec(tmp_path / "source")
    assert (kept.settings, float(kept.latent_std)) == (settings, 1.0)
    for name, tensor in kept.encoder.state_dict().items():
        torch.testing.assert_close(copy.encoder.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_codec_that_predicts_its_noise_or_has_none_takes_no_law() -> None:
    law = "latents.variance={kind: fixed, sigma: 0.3}"
    load_experiment(QUICKSTART, overrides=[law])
    with pytest.raises(UserError, match="this one is diagonal_gaussian: remove"):
        load_experiment(QUICKSTART, overrides=[law, "codec.variance={kind: diagonal_gaussian}"])
    codes = QUICKSTART.with_name("image") / "codes.yaml"
    with pytest.raises(UserError, match="this one is vector_quantized"):
        load_experiment(codes, overrides=[law])
