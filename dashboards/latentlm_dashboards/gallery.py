"""Pictures of many runs at the same seeds: thumbnails, the grid of tiles that they are, budgets.

The platform logs samples as one picture of tiles, row by row: in every configuration the same
place holds the same seed and class. A thumbnail keeps the first rows, so that one embedded picture
serves as a strip, as any of its tiles and as the whole. Originals stay in MLflow.
"""

import base64
import io
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

GAP = 2  # white pixels around a tile
BUDGET_BYTES = 7_000_000  # of all pictures together, before base64 makes four bytes of three
QUALITY = 80


class Size(NamedTuple):
    """What a thumbnail keeps: rows of tiles, pixels of a tile, pixels of one without tiles."""

    rows: int
    tile: int
    whole: int


SIZES = ((24, Size(8, 96, 1000)), (80, Size(4, 72, 600)), (200, Size(2, 56, 400)))
SMALLEST = Size(1, 48, 200)


class Tiling(NamedTuple):
    """Columns and rows of tiles; 1 × 1 for a picture that is no grid."""

    columns: int
    rows: int


class Thumbnail(NamedTuple):
    """A WebP picture; `of` is what the original holds."""

    data: bytes
    width: int
    height: int
    tiling: Tiling
    of: Tiling

    def url(self) -> str:
        """As a data URL, which needs no request."""
        return f"data:image/webp;base64,{base64.b64encode(self.data).decode()}"


def tiling_of(size: tuple[int, int], tile: int | None) -> Tiling:
    """How many tiles of `tile` pixels a picture of (width, height) holds, each with its gap."""
    if tile:
        columns, left = divmod(size[0] - GAP, tile + GAP)
        rows, over = divmod(size[1] - GAP, tile + GAP)
        if columns > 0 and rows > 0 and left == 0 and over == 0:
            return Tiling(columns, rows)
    return Tiling(1, 1)


def size_for(count: int) -> Size:
    """How large thumbnails are where `count` pictures share a page."""
    return next((size for most, size in SIZES if count <= most), SMALLEST)


def thumbnail(raw: bytes, tile: int | None, size: Size) -> Thumbnail:
    """The first rows of a picture's tiles, without the outermost half gap, so that tiles are equal
    shares of it. Raises ValueError where the bytes are no picture."""
    try:
        with Image.open(io.BytesIO(raw)) as opened:
            picture = opened.convert("L" if opened.mode in ("L", "1", "I;16") else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture cannot be read: {error}") from None
    of = tiling = tiling_of(picture.size, tile)
    largest = size.whole
    if tile and of != (1, 1):
        tiling = Tiling(of.columns, min(size.rows, of.rows))
        edge, step = GAP // 2, tile + GAP
        right, bottom = edge + of.columns * step, edge + tiling.rows * step
        picture = picture.crop((edge, edge, right, bottom))
        largest = tiling.columns * size.tile
    if picture.width > largest:
        height = max(1, round(picture.height * largest / picture.width))
        picture = picture.resize((largest, height), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    picture.save(packed, "WEBP", quality=QUALITY, method=2)
    return Thumbnail(packed.getvalue(), *picture.size, tiling, of)


def within_budget(sizes: list[int], budget: int = BUDGET_BYTES) -> int:
    """How many of the first pictures fit into the budget."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > budget:
            return count
    return len(sizes)
