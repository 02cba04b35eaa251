"""Sound of speech runs: players and spectrograms. The one place that says what such a run logs.

An evaluation that generates speech logs `audio/NAME.wav` (PCM, 16 bits), and may log
`audio/texts.json`, a JSON object NAME → the text that was to be said. The same NAME in two
evaluations is the same text, prompt and seed. The speech track is not trained yet; what it writes
has to be of this form.
"""

import base64
import io
import wave
from typing import NamedTuple

import numpy as np
from PIL import Image

FOLDER, TEXTS = "audio", "audio/texts.json"
BUDGET_BYTES = 4_000_000  # of all sounds together, before base64 makes four bytes of three
WINDOW, HOP = 512, 256  # samples
LARGEST_WIDTH = 480  # pixels of a spectrogram
FLOOR_DB = -80.0


class Sound(NamedTuple):
    """A waveform of one channel in [−1, 1], and the file it came from."""

    data: bytes
    rate_hz: int
    samples_S: np.ndarray

    @property
    def seconds(self) -> float:
        return len(self.samples_S) / self.rate_hz

    def url(self) -> str:
        """As a data URL, which needs no request."""
        return f"data:audio/wav;base64,{base64.b64encode(self.data).decode()}"


def read_sound(raw: bytes) -> Sound:
    """A WAV file of 16-bit PCM; several channels are averaged. ValueError for anything else."""
    try:
        with wave.open(io.BytesIO(raw)) as file:
            rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError, RuntimeError) as error:
        raise ValueError(f"the sound is no WAV file that can be read: {error}") from None
    if width != 2 or rate <= 0:
        raise ValueError(f"the sound has {8 * width} bits at {rate} Hz; 16 bits are expected")
    samples = np.frombuffer(frames, "<i2").astype(np.float32) / 32768
    return Sound(raw, rate, samples.reshape(-1, channels).mean(axis=1))


def spectrogram(sound: Sound) -> bytes:
    """A WebP picture: time to the right, frequency upwards to half the rate, 80 dB from black."""
    padded = np.pad(sound.samples_S, (0, max(0, WINDOW - len(sound.samples_S))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    level = 10 * np.log10(power / max(float(power.max()), 1e-12) + 1e-12)
    shade = np.clip(1 - level / FLOOR_DB, 0, 1).T[::-1]
    picture = Image.fromarray((shade * 255).astype(np.uint8))
    picture = picture.resize((min(LARGEST_WIDTH, max(120, picture.width)), 96))
    packed = io.BytesIO()
    picture.save(packed, "WEBP", quality=70, method=2)
    return packed.getvalue()
