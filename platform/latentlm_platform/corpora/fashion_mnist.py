"""Fashion-MNIST (Xiao et al. 2017) from its IDX files: 28 × 28 grey, ten classes of clothing."""

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latentlm_platform.corpora.split_files import Image
from latentlm_platform.errors import UserError

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FOLDER = "usr/share/datasets/fashion-mnist"
PREFIXES = {"train": "train", "test": "t10k"}
UBYTE = 8  # the IDX code of uint8


def read_split(unpacked: Path, split: str) -> Iterator[Image]:
    """The images of `train` or `test` in their published order."""
    prefix = unpacked / FOLDER / PREFIXES[split]
    pixels_NYX = read_idx(Path(f"{prefix}-images-idx3-ubyte.gz"))
    labels_N = read_idx(Path(f"{prefix}-labels-idx1-ubyte.gz"))
    if len(pixels_NYX) != len(labels_N):
        raise UserError(
            f"{prefix} has {len(pixels_NYX)} images but {len(labels_N)} labels: fetch it again"
        )
    for number, (pixels_YX, label) in enumerate(zip(pixels_NYX, labels_N, strict=True)):
        yield Image(f"{split}/{number:05d}", pixels_YX[..., None], int(label))


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array of a gzipped IDX file: two zero bytes, type, dimensions, sizes, then uint8."""
    data = gzip.decompress(path.read_bytes())
    zeros, kind, dimensions = struct.unpack_from(">HBB", data)
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    if zeros or kind != UBYTE or len(data) != 4 + 4 * dimensions + int(np.prod(shape)):
        raise UserError(f"{path} is not a whole IDX file of bytes: fetch it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
