"""Files of GGUF for llama.cpp: their types, their names, and what runs them."""

from tico_export.gguf_files._container import FileTensor, Value, write_gguf
from tico_export.gguf_files._contents import Contents, content_problems
from tico_export.gguf_files._hyperparameters import hyperparameters
from tico_export.gguf_files._importance import write_imatrix
from tico_export.gguf_files._llama_cpp import llama_cpp
from tico_export.gguf_files._rounding import rounding_notes, type_notes
from tico_export.gguf_files._super_blocks import two_levels
from tico_export.gguf_files._tensor_types import (
    Q4_K,
    Q5_K,
    SuperBlockType,
    offset_block_bytes,
    six_bit_bytes,
)
from tico_export.gguf_files._tokenizer import tokenizer_metadata, tokenizer_notes, tokenizer_problems
from tico_export.gguf_files._tokenizer_files import TOKENIZER_NAME, TokenizerFiles

__all__ = [
    "Q4_K",
    "Q5_K",
    "TOKENIZER_NAME",
    "Contents",
    "FileTensor",
    "SuperBlockType",
    "TokenizerFiles",
    "Value",
    "content_problems",
    "hyperparameters",
    "llama_cpp",
    "offset_block_bytes",
    "rounding_notes",
    "six_bit_bytes",
    "tokenizer_metadata",
    "tokenizer_notes",
    "tokenizer_problems",
    "two_levels",
    "type_notes",
    "write_gguf",
    "write_imatrix",
]
