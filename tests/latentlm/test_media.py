"""Decoding held against Pillow's own operations, and against files made to break it."""

import contextlib
import io
import struct
import time
import wave
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from latentlm.media import (
    UnreadableImage,
    caption_image,
    decode_image,
    decode_wav,
    encode_png,
    encode_wav,
    tile_images,
)

SIZE = 16
CAP = 1_000_000


def photo(*, height: int = SIZE, width: int = SIZE, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decode(data: bytes, *, size: int = SIZE, channels: int = 3) -> np.ndarray:
    return decode_image(data, image_size=size, channels=channels, max_pixels=CAP)


def fault(data: bytes) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode(data)
    assert caught.value.reason
    return caught.value.kind


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header says WIDTH × HEIGHT, with a few bytes of pixels."""

    def block(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = block(b"IHDR", header) + block(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + body + block(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_come_back_exactly(kind: str) -> None:
    assert np.array_equal(decode(saved(photo(), kind)), np.asarray(photo()))


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {}), ("WEBP", {}), ("GIF", {})])
def test_lossy_formats_come_back_as_pillow_reads_them(kind: str, options: dict) -> None:
    data = saved(photo(), kind, **options)
    assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32), (8, 8), (8, 24)])
def test_crop_is_resizing_the_shorter_side_and_then_cropping(height: int, width: int) -> None:
    image = photo(height=height, width=width)
    factor = SIZE / min(height, width)
    whole = image.resize((round(width * factor), round(height * factor)), Image.Resampling.BICUBIC)
    left, top = (whole.width - SIZE) // 2, (whole.height - SIZE) // 2
    expected = np.asarray(whole.crop((left, top, left + SIZE, top + SIZE))).astype(int)
    assert np.abs(decode(saved(image)) - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
def test_orientation_is_honoured(orientation: int, kind: str) -> None:
    image = photo(height=SIZE, width=SIZE)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, kind, exif=exif)
    with Image.open(io.BytesIO(data)) as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert np.array_equal(decode(data), upright)
    assert orientation == 1 or not np.array_equal(upright, np.asarray(image))


def test_broken_exif_leaves_the_pixels() -> None:
    data = saved(photo(), "JPEG", exif=b"Exif\0\0" + b"\xff" * 40)
    assert decode(data).shape == (SIZE, SIZE, 3)


def test_cmyk_is_converted() -> None:
    data = saved(photo().convert("CMYK"), "JPEG")
    assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_cut(kind: str) -> None:
    levels = (np.arange(SIZE * SIZE, dtype=np.uint16) * 257).reshape(SIZE, SIZE)
    grey = decode(saved(Image.fromarray(levels), kind), channels=1)[..., 0]
    assert np.array_equal(grey.ravel(), np.arange(SIZE * SIZE))


def test_float_pixels_are_refused() -> None:
    assert fault(saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")) == "unreadable_image"


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(mode: str) -> None:
    clear, solid = Image.new(mode, (SIZE, SIZE), 0), photo().convert("L").convert(mode)
    assert (decode(saved(clear)) == 255).all()
    assert np.array_equal(decode(saved(solid), channels=1)[..., 0], np.asarray(solid)[..., 0])


def test_transparent_colour_of_a_palette_lies_on_white() -> None:
    image = Image.new("P", (SIZE, SIZE), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.paste(0, (0, 0, SIZE // 2, SIZE))
    pixels = decode(saved(image, "PNG", transparency=0))
    assert (pixels[:, : SIZE // 2] == 255).all()
    assert (pixels[:, SIZE // 2 :] == [200, 10, 10]).all()


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "TIFF"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert (decode(data) == [255, 0, 0]).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_channels_are_as_asked(mode: str, channels: int) -> None:
    image = photo().convert(mode)
    expected = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    found = decode(saved(image), channels=channels)
    assert found.shape == (SIZE, SIZE, channels)
    assert np.abs(found - expected.reshape(found.shape).astype(int)).max() <= 1


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"<html>" * 100, b"P6 4 4 255\n" + bytes(48), b"%!PS-Adobe-3.0 EPSF-3.0\n"],
)
def test_what_is_no_image(data: bytes) -> None:
    assert fault(data) == "not_an_image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated(kind: str) -> None:
    data = saved(photo(height=64, width=64), kind)
    assert fault(data[: len(data) // 2]) == "truncated_image"


def test_bomb_is_refused_from_its_header() -> None:
    assert fault(png_claiming(13_000, 13_000)) == "decompression_bomb"
    assert fault(png_claiming(200_000, 200_000)) == "decompression_bomb"
    assert fault(png_claiming(1_000, 1_000)) == "truncated_image"  # at the cap: decoded


def test_extreme_shapes_stay_small() -> None:
    """Resizing the shorter side of 1 × 900,000 would make 28.8 million columns."""
    started = time.monotonic()
    pixels = decode(saved(Image.new("L", (900_000, 1), 7)), size=32)
    assert (pixels == 7).all()
    assert pixels.shape == (32, 32, 3)
    assert time.monotonic() - started < 5


@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_damage_is_an_image_or_a_named_fault(kind: str, damage: list[tuple[int, int]]) -> None:
    data = bytearray(saved(photo(height=20, width=20), kind))
    for place, value in damage:
        data[place % len(data)] = value
    with contextlib.suppress(UnreadableImage):
        assert decode(bytes(data)).shape == (SIZE, SIZE, 3)


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3]), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_png_is_lossless(height: int, width: int, channels: int, seed: int) -> None:
    shape = (height, width, channels)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert np.array_equal(np.asarray(image).reshape(shape), pixels)


def test_png_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[Y,X,1\] or \[Y,X,3\]"):
        encode_png(np.zeros((4, 4, 3), np.float32))


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_tiles_stand_in_reading_order(count: int) -> None:
    images = np.random.default_rng(0).integers(0, 255, (count, 5, 6, 3), dtype=np.uint8)
    sheet = tile_images(images, 3, gap=1)
    assert sheet.shape == (1 + -(-count // 3) * 6, 1 + 3 * 7, 3)
    covered = np.zeros(sheet.shape, bool)
    for position, image in enumerate(images):
        top, left = 1 + position // 3 * 6, 1 + position % 3 * 7
        assert np.array_equal(sheet[top : top + 5, left : left + 6], image)
        covered[top : top + 5, left : left + 6] = True
    assert (sheet[~covered] == 255).all()


def test_caption_stands_below_the_enlarged_image() -> None:
    image = np.full((8, 8, 1), 90, np.uint8)
    captioned = caption_image(image, "boot", width=33)
    assert captioned.shape[1:] == (32, 1)
    assert (captioned[:32] == 90).all()
    assert (captioned[32:] < 128).any()
    assert not np.array_equal(captioned, caption_image(image, "coat", width=33))


@pytest.mark.parametrize(("width", "step"), [(1, 2**-7), (2, 2**-15), (3, 2**-23), (4, 2**-31)])
def test_wav_files_of_every_width_are_the_same_sound(width: int, step: float) -> None:
    wanted = np.array([0.0, 0.5, -0.5, -1.0, 0.25])
    whole = (wanted * 2 ** (8 * width - 1)).astype("<i8") + (128 if width == 1 else 0)
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((2, width, 8000, 0, "NONE", ""))
        low_bytes = whole.view(np.uint8).reshape(-1, 8)[:, :width]
        file.writeframes(np.repeat(low_bytes, 2, axis=0).tobytes())  # both channels
    found = decode_wav(stream.getvalue(), rate_hz=8000)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=step)


def test_a_sound_comes_back_and_another_rate_is_resampled() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 16_000).astype(np.float32)
    data = encode_wav(tone, rate_hz=16_000)
    np.testing.assert_allclose(decode_wav(data, rate_hz=16_000), tone, atol=2**-14)
    half = decode_wav(data, rate_hz=8000)
    np.testing.assert_allclose(half[100:-100], tone[::2][100:-100], atol=0.02)
    assert abs(encode_wav(np.array([9.0], np.float32), rate_hz=8000)[-1]) == 0x7F


@pytest.mark.parametrize("data", [b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b"\x89PNG" * 30])
def test_no_wav_file_is_a_sentence(data: bytes) -> None:
    with pytest.raises(ValueError, match="no PCM WAV file"):
        decode_wav(data, rate_hz=8000)
