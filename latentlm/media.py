"""Bytes ↔ images and sounds: what comes in is a file nobody has checked, what goes out an array.

An image file is good or raises `UnreadableImage` with exactly one kind; the pixel cap is held
against the header, before anything is decoded. Images are uint8 [Y,X,C] (1 grey or 3 RGB). Sounds
are fp32 samples [S] in [-1, 1] of one channel; of files PCM WAV is known.
"""

import io
import warnings
import wave
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]
Sound = npt.NDArray[np.float32]
Kind = Literal["not_an_image", "truncated_image", "decompression_bomb", "unreadable_image"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\x00", b"MM\x00*")
ORIENTATION_TAG = 0x0112
ORIENTATIONS = {  # EXIF 2.3, 4.6.4: what undoes each value
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE = 255
CAPTION_HEIGHT = 14


class UnreadableImage(ValueError):
    """Bytes that are not a usable image: `kind` to count by, `reason` to read."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


def decode_image(data: bytes, *, image_size: int, channels: int, max_pixels: int) -> Pixels:
    """The file's first frame as uint8 [image_size, image_size, channels].

    EXIF orientation is honoured, transparency lies on white, the shorter side is resized to
    `image_size` (bicubic, antialiased) and the centre is kept. Raises `UnreadableImage`.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}; an image has 1 (grey) or 3 (RGB)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what matters raises
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image.size, max_pixels)
                image.load()
                return _finish(image, image_size=image_size, channels=channels)
        except UnreadableImage:
            raise
        except (Image.DecompressionBombError, MemoryError) as error:
            raise UnreadableImage("decompression_bomb", str(error) or "out of memory") from None
        except Exception as error:  # Pillow's decoders raise nearly every type on broken input
            raise _unreadable(error, data) from None


def encode_png(pixels_YXC: Pixels) -> bytes:
    """A PNG of uint8 [Y,X,1] or [Y,X,3]."""
    stream = io.BytesIO()
    _to_image(pixels_YXC).save(stream, format="PNG")
    return stream.getvalue()


def tile_images(images_BYXC: Pixels, columns: int, *, gap: int = 2) -> Pixels:
    """One picture of a batch [B,Y,X,C], row by row on white; missing last tiles stay white."""
    count, height, width, channels = images_BYXC.shape
    rows = max(1, -(-count // columns))
    step_y, step_x = height + gap, width + gap
    sheet_YXC = np.full((rows * step_y + gap, columns * step_x + gap, channels), WHITE, np.uint8)
    for position, image_YXC in enumerate(images_BYXC):
        top, left = gap + position // columns * step_y, gap + position % columns * step_x
        sheet_YXC[top : top + height, left : left + width] = image_YXC
    return sheet_YXC


def caption_image(pixels_YXC: Pixels, text: str, *, width: int) -> Pixels:
    """The image [Y,X,C] enlarged in whole steps towards `width` pixels, `text` below, on white."""
    factor = max(1, width // pixels_YXC.shape[1])
    enlarged_YXC = pixels_YXC.repeat(factor, axis=0).repeat(factor, axis=1)
    strip = Image.new("L", (enlarged_YXC.shape[1], CAPTION_HEIGHT), 255)
    ImageDraw.Draw(strip).text((0, 1), text, fill=0, font=ImageFont.load_default(10))
    strip_YXC = np.asarray(strip)[..., None].repeat(pixels_YXC.shape[2], axis=2)
    return np.concatenate([enlarged_YXC, strip_YXC])


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        reason = f"{width} × {height} pixels; at most {max_pixels} are decoded"
        raise UnreadableImage("decompression_bomb", reason)
    if not width * height:
        raise UnreadableImage("unreadable_image", f"{width} × {height} pixels")


def _finish(image: Image.Image, *, image_size: int, channels: int) -> Pixels:
    """Crop and resize in one step: a 1 × 50,000,000 image never becomes larger than its square."""
    turn = ORIENTATIONS.get(_orientation(image))  # Pillow has already turned a TIFF in `load`
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    small = _to_linear(image).resize(
        (image_size, image_size),
        Image.Resampling.BICUBIC,
        box=(left, top, left + side, top + side),
    )
    if turn is not None:  # the centre square turns within itself, so the small image can be turned
        small = small.transpose(turn)
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small)
    pixels = np.array(small.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(image_size, image_size, channels)


def _to_linear(image: Image.Image) -> Image.Image:
    """L, RGB or RGBA with 8 bits, the modes that may be resized and composited."""
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnreadableImage("unreadable_image", "32-bit pixels have no known range")
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, or 1 where there is none that can be read."""
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # broken metadata does not make the pixels unreadable
        return 1


def _unreadable(error: Exception, data: bytes) -> UnreadableImage:
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        if data[:4] == b"RIFF" and _riff_is_cut(data):
            return UnreadableImage("truncated_image", "the WebP file is shorter than it says")
        if not data.startswith(SIGNATURES):
            known = ", ".join(FORMATS)
            return UnreadableImage("not_an_image", f"{len(data)} bytes, none of {known}")
        return UnreadableImage("unreadable_image", "the header is broken or cut")
    if "truncated" in str(error).lower() or _riff_is_cut(data):
        return UnreadableImage("truncated_image", reason)
    return UnreadableImage("unreadable_image", reason)


def _riff_is_cut(data: bytes) -> bool:
    return data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data)


def _to_image(pixels_YXC: Pixels) -> Image.Image:
    if pixels_YXC.dtype != np.uint8 or pixels_YXC.ndim != 3 or pixels_YXC.shape[2] not in (1, 3):
        shape = f"{pixels_YXC.dtype}{list(pixels_YXC.shape)}"
        raise ValueError(f"the image is {shape}; expected uint8 [Y,X,1] or [Y,X,3]")
    return Image.fromarray(pixels_YXC[..., 0] if pixels_YXC.shape[2] == 1 else pixels_YXC)


def read_png(data: bytes) -> Pixels:
    """A picture of our own, as `encode_png` wrote it: uint8 [Y,X,1] or [Y,X,3]."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def decode_wav(data: bytes, *, rate_hz: int) -> Sound:
    """A PCM WAV file of 8, 16, 24 or 32 bits as fp32 [S]: channels averaged, at `rate_hz`.

    A file of another rate is resampled (windowed sinc). Raises ValueError where it is none.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            raw = np.frombuffer(file.readframes(file.getnframes()), np.uint8)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"no PCM WAV file ({error}); convert it to one") from None
    if width not in (1, 2, 3, 4) or len(raw) < width * channels or rate < 1:
        raise ValueError(f"{len(raw)} bytes of {8 * width} bits at {rate} Hz are no sound")
    whole = raw[: len(raw) // (width * channels) * width * channels].reshape(-1, width)
    shifted = np.zeros((len(whole), 4), np.uint8)
    shifted[:, 4 - width :] = whole  # little-endian: the high bytes of 32 bits
    if width == 1:
        shifted[:, 3] ^= 0x80  # 8 bits are unsigned
    samples = shifted.view("<i4").reshape(-1, channels).astype(np.float64).mean(1) / 2**31
    sound: Sound = samples.astype(np.float32)
    return sound if rate == rate_hz else _resampled(sound, rate, rate_hz)


def _resampled(sound: Sound, rate: int, wanted: int) -> Sound:
    import torch
    from torchaudio.functional import resample  # type: ignore[import-untyped]

    found: Sound = resample(torch.from_numpy(sound), rate, wanted).numpy()
    return found


def encode_wav(sound: Sound, *, rate_hz: int) -> bytes:
    """A PCM WAV file of 16 bits of fp32 [S]; what lies beyond [-1, 1] is cut off."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((np.clip(sound, -1, 1) * 32767).round().astype("<i2").tobytes())
    return stream.getvalue()
