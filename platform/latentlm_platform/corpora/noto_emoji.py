"""Noto colour emoji by Unicode group: 128 × 128 RGB on white, nine classes of unequal size.

Left out: skin-tone variants, near-copies that would make most of People & Body and put copies of
training images into the test split; and sequences that the font does not draw as one glyph.
"""

import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont, features

from latentlm_platform.corpora.split_files import Image
from latentlm_platform.errors import UserError

CLASS_NAMES = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
FONT = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
LIST = "usr/share/unicode/emoji/emoji-test.txt"
FONT_SIZE = 109  # the only size of the font's bitmaps, 136 × 128 pixels
GLYPH_WIDTH, GLYPH_HEIGHT = 136, 128
SIZE = 128
SKIN_TONES = range(0x1F3FB, 0x1F400)
TEST_PERCENT = 15
LINE = re.compile(r"(?P<codes>[0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E\S+ (?P<name>.+)")


class Emoji(NamedTuple):
    """An emoji of the Unicode list."""

    text: str
    name: str
    group: str

    @property
    def split(self) -> str:
        """By a hash of the name: the same on every machine and for every later Unicode."""
        draw = int.from_bytes(sha256(self.name.encode()).digest()[:8], "big") % 100
        return "test" if draw < TEST_PERCENT else "train"


def read_split(unpacked: Path, split: str) -> Iterator[Image]:
    """The emoji of `train` or `test`, groups mixed, keyed by group and name."""
    if not features.check("raqm"):
        raise UserError(
            "this Pillow cannot draw emoji sequences (no raqm); install Pillow's own wheel"
            " with `pip install --force-reinstall pillow`"
        )
    font = ImageFont.truetype(str(unpacked / FONT), FONT_SIZE)
    listed = read_list((unpacked / LIST).read_text(encoding="utf-8"))
    chosen = [e for e in listed if e.split == split and font.getlength(e.text) <= GLYPH_WIDTH + 1]
    for emoji in sorted(chosen, key=lambda emoji: sha256(emoji.text.encode()).digest()):
        label = CLASS_NAMES.index(emoji.group)
        yield Image(f"{emoji.group}/{emoji.name}", _draw(emoji.text, font), label)


def read_list(text: str) -> list[Emoji]:
    """The fully-qualified emoji of Unicode's emoji-test.txt, without skin tones."""
    group, listed = "", []
    for line in text.splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif (found := LINE.fullmatch(line)) and group in CLASS_NAMES:
            codes = [int(code, 16) for code in found["codes"].split()]
            if not any(code in SKIN_TONES for code in codes):
                listed.append(Emoji("".join(map(chr, codes)), found["name"], group))
    return listed


def _draw(text: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    canvas = PillowImage.new("RGB", (GLYPH_WIDTH, GLYPH_WIDTH), "white")
    place = (0, (GLYPH_WIDTH - GLYPH_HEIGHT) // 2)
    ImageDraw.Draw(canvas).text(place, text, font=font, embedded_color=True, anchor="lt")
    return np.asarray(canvas.resize((SIZE, SIZE), PillowImage.Resampling.BICUBIC))
