"""The encoder actor: pictures in batches and orientations, sounds of any length one by one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentlm.codec.image_vit import ImageViTCodec
from latentlm.codec.speech_conv import SpeechConvCodec
from latentlm.load import load_codec, save_codec
from latentlm.parts import Part
from latentlm.settings import DiagonalGaussianVariance
from latentlm.signals import pixels_to_signal
from latentlm_platform.corpora.records import BadRecord, Decoded
from latentlm_platform.latents.decoding import ChunkDecoder, Words
from latentlm_platform.latents.encoded import IMAGE, LABEL, SOUND, TEXT, EncodedChunk
from latentlm_platform.latents.encoder import EncoderActor
from latentlm_platform.latents.wire_rows import pack_row, unpack_row
from making_exports import IMAGES, SPEECH, make_ranks

Records = list[tuple[Part, ...] | None]


@dataclass(frozen=True)
class Few:
    """A split of one chunk; None is a record that cannot be used."""

    records: Records

    def decode_chunk(self, chunk: int) -> list[Decoded | BadRecord]:
        return [
            BadRecord(f"r{number}", "broken", "it is broken", "dog")
            if parts is None
            else Decoded(f"r{number}", parts, tuple(not isinstance(part, int) for part in parts))
            for number, parts in enumerate(self.records)
        ]

    def ids_of(self, chunk: int) -> np.ndarray[Any, Any]:
        return np.arange(40, 40 + len(self.records))


def decoded(records: Records, folder: Path) -> Any:
    split: Any = Few(records)
    return ChunkDecoder(split, "train", Words(str(make_ranks(folder)), 261))(0)


def saved(codec: Any, folder: Path) -> Any:
    with torch.no_grad():  # weights at which signals and latents differ visibly
        for parameter in codec.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    codec.set_statistics(mean=0.0, std=1.0)
    save_codec(folder / "codec", codec=codec)
    return load_codec(folder / "codec")  # kernels may round by where weights lie in memory


def speech(folder: Path, *, with_std: bool) -> Any:
    torch.manual_seed(0)
    settings = replace(SPEECH, variance=DiagonalGaussianVariance()) if with_std else SPEECH
    return saved(SpeechConvCodec(settings), folder)


def images(folder: Path, *, with_std: bool = False) -> Any:
    torch.manual_seed(0)
    settings = replace(IMAGES, variance=DiagonalGaussianVariance()) if with_std else IMAGES
    return saved(ImageViTCodec(settings), folder)


def encoded(folder: Path, arrays: Any, *, batch_size: int = 3, sides: int = 1) -> EncodedChunk:
    """Through the actor as Ray Data calls it."""
    actor = EncoderActor(folder / "codec", batch_size=batch_size, orientations=sides)
    chunk = EncodedChunk.of_arrays(unpack_row(actor(pack_row(arrays))))
    chunk.check()
    return chunk


def tone(samples: int) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(samples)
    return random.uniform(-1, 1, samples).astype(np.float32)


def picture(number: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 1), dtype=np.uint8)


@pytest.mark.parametrize("with_std", [False, True])
def test_sounds_of_any_length_are_what_each_is_alone(tmp_path: Path, with_std: bool) -> None:
    codec = speech(tmp_path, with_std=with_std)
    sounds = [tone(samples) for samples in (80, 9, 33, 8, 200)]
    records: Records = [
        (sounds[0],),
        None,
        ("hello", sounds[1], "and", sounds[2]),
        ("no sound",),
        (sounds[3], sounds[4]),
    ]
    chunk = encoded(tmp_path, decoded(records, tmp_path))
    assert [chunk.usable(row) for row in range(5)] == [True, False, True, True, True]
    assert chunk.ids.tolist() == [40, 41, 42, 43, 44]
    parts = [part for row in range(5) for part in chunk.parts(row)]
    assert [part.kind for part in parts] == [SOUND, TEXT, SOUND, TEXT, SOUND, TEXT, SOUND, SOUND]
    spoken = [part for part in parts if part.kind == SOUND]
    assert [len(part.mean_NZ) for part in spoken] == [
        codec.latents_in(len(sound)) for sound in sounds
    ]
    assert len({len(part.mean_NZ) for part in spoken}) == 5
    for sound, part in zip(sounds, spoken, strict=True):
        with torch.no_grad():
            posterior = codec.encode(torch.tensor(sound)[None])
        assert np.array_equal(part.mean_NZ, posterior.mean_BNZ[0].numpy())
        if with_std:
            assert np.array_equal(part.std_NZ, posterior.std_BNZ[0].numpy())
        else:
            assert part.std_NZ is None
    words = chunk.parts(2)[0].words
    assert words is not None
    assert bytes(words.tolist()) == b"hello"


@pytest.mark.parametrize("with_std", [False, True])
def test_pictures_in_both_orientations(tmp_path: Path, with_std: bool) -> None:
    codec = images(tmp_path, with_std=with_std)
    pictures = [picture(number) for number in range(5)]
    records: Records = [
        *((number % 3, pixels) for number, pixels in enumerate(pictures[:2])),
        None,
        ("two", pictures[2], "of", pictures[3]),
        (1, pictures[4]),
    ]
    chunk = encoded(tmp_path, decoded(records, tmp_path), batch_size=2, sides=2)
    assert chunk.scored.tolist() == [kind != LABEL for kind in chunk.kinds.tolist()]
    for mirrored in (False, True):
        parts = [p for row in range(5) for p in chunk.parts(row, mirrored=mirrored)]
        shown = [part for part in parts if part.kind == IMAGE]
        for pixels, part in zip(pictures, shown, strict=True):
            turned = torch.from_numpy(pixels[:, ::-1].copy() if mirrored else pixels)[None]
            with torch.no_grad():
                posterior = codec.encode(pixels_to_signal(turned))
            assert len(part.mean_NZ) == codec.latent_count
            np.testing.assert_allclose(part.mean_NZ, posterior.mean_BNZ[0], rtol=1e-4, atol=1e-5)
            if with_std:
                np.testing.assert_allclose(part.std_NZ, posterior.std_BNZ[0], rtol=1e-4)
    assert not np.allclose(chunk.mean[0], chunk.mean[1], atol=1e-2)


def test_a_picture_is_the_same_to_the_last_bit_whichever_way_it_was_asked_for(
    tmp_path: Path,
) -> None:
    """Both orientations at once, as a cache keeps them, or each picture in its own."""
    images(tmp_path)
    records: Records = [(0, picture(number)) for number in range(7)]
    cached = encoded(tmp_path, decoded(records, tmp_path), sides=2)
    mirrored = np.array([True, False, False, True, True, False, True])
    arrays = decoded(records, tmp_path) | {"mirrored": mirrored}
    streamed = encoded(tmp_path, arrays)
    for row, turned in enumerate(mirrored.tolist()):
        ours = streamed.parts(row, mirrored=turned)[1].mean_NZ
        assert np.array_equal(ours, cached.parts(row, mirrored=turned)[1].mean_NZ)  # type: ignore


@pytest.mark.parametrize("records", [[None, None], [("words",), ("alone",)]])
def test_chunks_without_signals(tmp_path: Path, records: Records) -> None:
    images(tmp_path)
    chunk = encoded(tmp_path, decoded(records, tmp_path), sides=2)
    assert [mean.shape for mean in chunk.mean] == [(0, 4), (0, 4)]
    assert chunk.good == sum(parts is not None for parts in records)


def test_what_cannot_be_used_is_told_beside_the_chunk(tmp_path: Path) -> None:
    import json

    arrays = decoded([("a",), None, None], tmp_path)
    about = json.loads(arrays["about"].tobytes())
    assert about["keys"] == ["r0", "r1", "r2"]
    assert about["bad"]["counts"] == {"broken": {"dog": 2}}
    assert about["bad"]["examples"][0]["split"] == "train"
