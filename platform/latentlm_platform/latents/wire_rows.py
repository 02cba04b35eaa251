"""Named arrays as one row of a Ray Data set: their bytes, types and shapes.

A chunk or a micro-batch travels as one row, so that its size never depends on how Ray Data
cuts blocks.
"""

import json
from typing import Any

import numpy as np
import numpy.typing as npt

Row = dict[str, Any]
Arrays = dict[str, npt.NDArray[Any]]
SHAPES = "shapes"


def pack_row(arrays: Arrays) -> Row:
    """Numeric arrays of any shape → a row of bytes columns and their shapes."""
    shapes = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    columns = {name: np.ascontiguousarray(array).tobytes() for name, array in arrays.items()}
    return {SHAPES: json.dumps(shapes), **columns}


def unpack_row(row: Row) -> Arrays:
    """The arrays that `pack_row` packed."""
    shapes = json.loads(row[SHAPES])
    return {
        name: np.frombuffer(row[name], dtype=dtype).reshape(shape)
        for name, (dtype, shape) in shapes.items()
    }
