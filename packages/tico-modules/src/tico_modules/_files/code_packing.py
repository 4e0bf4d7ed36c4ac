"""How codes are packed, as a folder says it for readers that know nothing of this library."""

from __future__ import annotations

from typing import Final

_WORDS: Final = (
    "A weight is a matrix: the first axis of `shape` gives the rows, all others together the columns.",
    "Its fields are in `modules.PATH.layout.packed`. Its tensors are PATH.packed.codes, .scale, .zero_point,",
    ".group_index where `group_index` is true, and .offset where `super_block` has `offset_bits`.",
    "`aliases` names tensors that are another one.",
    "Code i of a row takes the bits i * width to (i + 1) * width of the row, from the lowest bit of its",
    "first byte on; zero bits pad a row to whole bytes. The width is `bits`, and 16 where that is above 8.",
    "Stored is the code less the smallest code: 0 for unsigned codes, -(2 ** (bits - 1)) for signed ones.",
    "Signed codes of 8 bits are the exception: they are stored as they are, as int8.",
    "Where `format` is given, codes are bit patterns of that format of floating-point elements: a value is",
    "element(code) * scale. The scales are in .stored_scale: as float32, as e8m0, 2 ** (code - 127), or as",
    "e4m3 numbers times .tensor_scale; there is no .scale and no .zero_point.",
    "The group of a column is column // group_size, group_index[column], or 0 where `group_size` is null.",
)

# A reader: it is given the fields of a weight and, as arrays, its tensors (group_index and offset are None
# without one).
_NUMPY: Final = (
    "columns, width = int(np.prod(shape[1:])), 16 if bits > 8 else bits",
    "flat = np.unpackbits(codes.view(np.uint8), axis=1, bitorder='little')[:, :columns * width]",
    "code = flat.reshape(-1, columns, width) @ (1 << np.arange(width)) - (signed << bits - 1)",
    "group = np.arange(columns) // (group_size or columns) if group_index is None else group_index",
    "weight = ((codes if codes.dtype == np.int8 else code) - zero_point[:, group]) * scale[:, group]",
    "weight = weight if offset is None else weight - offset[:, group]",
)


def describe_packing() -> dict[str, object]:
    """Return, as JSON values, how the codes of every weight are packed: in words, as fields and as NumPy."""
    return {
        "words": list(_WORDS),
        "bit_order": "little",
        "rows_start_at": "byte",
        "width": {"up to 8 bits": "bits", "above": 16},
        "origin": {"unsigned": "0", "signed": "-(2 ** (bits - 1))", "signed, 8 bits": "stored as int8"},
        "formula": "(code - zero_point[row, group]) * scale[row, group], less offset[row, group] if any",
        "numpy": list(_NUMPY),
    }
