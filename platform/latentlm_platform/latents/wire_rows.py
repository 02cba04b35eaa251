"""Named arrays as one row of a Ray Data set: their bytes, types and shapes.

A chunk or a micro-batch travels as one row, so that its size never depends on how Ray Data
cuts blocks. A row is an Arrow table over the arrays' own memory: nothing is copied but into the
object store.
"""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Row = Any  # an Arrow table of one row
Arrays = dict[str, npt.NDArray[Any]]
SHAPES = "shapes"


def pack_row(arrays: Arrays) -> Row:
    """Numeric arrays of any shape → a row of bytes columns and their shapes."""
    shapes = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    columns = {name: _column(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return pa.table({SHAPES: [json.dumps(shapes)], **columns})


def unpack_row(row: Row) -> Arrays:
    """The arrays that `pack_row` packed, as views of the row, which cannot be written to."""
    shapes = json.loads(row[SHAPES][0].as_py())
    return {
        name: np.frombuffer(_bytes_of(row[name]), dtype=dtype).reshape(shape)
        for name, (dtype, shape) in shapes.items()
    }


def _column(array: npt.NDArray[Any]) -> Any:
    """A column of one value, the array's bytes."""
    ends = np.array([0, array.nbytes], np.int64)
    values = pa.py_buffer(array.reshape(-1).view(np.uint8))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(ends), values])


def _bytes_of(column: Any) -> Any:
    """The buffer of a column's one value. Arrow's own scalars would copy it."""
    (array,) = (chunk for chunk in column.chunks if len(chunk))
    _, ends, values = array.buffers()
    start, end = np.frombuffer(ends, np.int64)[array.offset : array.offset + 2].tolist()
    return values.slice(start, end - start)
