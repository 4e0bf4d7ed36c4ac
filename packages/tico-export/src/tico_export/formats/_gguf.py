"""Files of GGUF, which llama.cpp runs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Final, Literal, final

import attrs
import torch

from tico_config import MXFP4, FloatFormat, Problem, UnsupportedError
from tico_config.validation import check_choice, check_instance, refuse
from tico_export.gguf_files import (
    TOKENIZER_NAME,
    Contents,
    FileTensor,
    TokenizerFiles,
    Value,
    content_problems,
    hyperparameters,
    llama_cpp,
    rounding_notes,
    tokenizer_metadata,
    tokenizer_notes,
    tokenizer_problems,
    type_notes,
    write_gguf,
)
from tico_export.protocol import Consumer, Example, Exporter, ExportTarget, exporter_entry
from tico_export.source import Source
from tico_modules import Tokenizer, write_companions

_FLOATS: Final = {"kept": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
_QUANTIZATION_VERSION: Final = 2


@final
@attrs.frozen(kw_only=True)
class GGUF(ExportTarget):
    """A file of GGUF for llama.cpp: a language model of the LLaMA family with its tokenizer.

    Integer weights stand in the smallest of Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 that holds their codes, each
    tensor in its own; all have blocks of 32 columns with a scale of float16. Those whose scales share
    super-blocks of 256 columns have Q4_K, Q5_K or Q6_K. Weights of MXFP4 have the type of that name. Norms
    and biases are float32.

    Attributes:
        model_name: what the file calls the model, ``name=`` for the constructor; by default the last part of
            its ``name_or_path``.
        scales: ``"nearest"`` rounds scales to float16, and the notes of the result say what it cost;
            ``"exact"`` refuses weights whose scales are no float16, so that the file holds the very values of
            the model.
        floats: the format of matrices that are left in float: ``"kept"``, ``"float16"`` or ``"bfloat16"``.
        tokenizer: a fast tokenizer of transformers, or a folder with the files of one; None takes what stands
            in the folder that the model was loaded from, if anything does, and False leaves it out. llama.cpp
            takes a file without a tokenizer, and tokens by number.

    Raises:
        ConfigError: an option has another value.
    """

    name: ClassVar[str] = "gguf"

    model_name: str | None = attrs.field(default=None, alias="name")
    scales: Literal["exact", "nearest"] = "nearest"
    floats: Literal["kept", "float16", "bfloat16"] = "kept"
    tokenizer: str | os.PathLike[str] | Tokenizer | Literal[False] | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse other options."""
        named = check_instance("name", self.model_name, str | None, "a text or None")
        writes = callable(getattr(self.tokenizer, "save_pretrained", None))
        told = self.tokenizer is False or isinstance(self.tokenizer, str | os.PathLike | None) or writes
        expected = "a folder, a tokenizer of transformers, None or False"
        refuse(
            named,
            check_choice("scales", self.scales, ("exact", "nearest")),
            check_choice("floats", self.floats, tuple(_FLOATS)),
            None if told else Problem(field="tokenizer", value=self.tokenizer, expected=expected),
        )


@final
class GGUFExporter(Exporter[GGUF]):
    """Gives tensors their names and blocks, and writes them after what llama.cpp has to know."""

    takes_offsets = True
    float_formats: ClassVar[tuple[type[FloatFormat], ...]] = (MXFP4,)

    def problems(self, source: Source) -> Iterable[Problem]:
        """Yield what llama.cpp has no type, no name or no arithmetic for."""
        yield from content_problems(source, nearest=self._nearest)
        contents = Contents.of(source)
        files = self._tokenizer(source)
        if contents is not None and files is not None:
            yield from tokenizer_problems(files, contents.rows)

    def write(self, source: Source, example: Example | None, path: Path) -> None:
        """Write the file, one tensor in memory at a time."""
        contents = _contents(source)
        tensors = self._tensors(contents)
        write_gguf(path, self._metadata(contents, tensors), tensors)

    def consumer(self, source: Source) -> Consumer:
        """Return llama.cpp on the processor, with keys and values in float32."""
        return llama_cpp(self._tensors(_contents(source)))

    def notes(self, source: Source) -> Iterable[str]:
        """Yield the types of the tensors, what was rounded, and what the tokenizer is."""
        contents, files = _contents(source), self._tokenizer(source)
        yield from type_notes(self._tensors(contents))
        yield from rounding_notes(contents, _FLOATS[self.target.floats])
        if files is None:
            yield "there is no tokenizer in the file: llama.cpp takes tokens by number"
        else:
            yield from tokenizer_notes(files)

    @property
    def _nearest(self) -> bool:
        return self.target.scales == "nearest"

    def _tensors(self, contents: Contents) -> list[FileTensor]:
        return list(contents.tensors(nearest=self._nearest, floats=_FLOATS[self.target.floats]))

    def _metadata(self, contents: Contents, tensors: Iterable[FileTensor]) -> dict[str, Value]:
        source, architecture = contents.source, contents.architecture
        files = self._tokenizer(source)
        vocabulary: dict[str, Value] = {"tokenizer.ggml.model": "no_vocab"}
        mostly = Counter(each.type.file_type for each in tensors if len(each.shape) > 1)
        return {
            "general.architecture": architecture.name,
            "general.type": "model",
            "general.name": self.target.model_name or _own_name(source) or architecture.name,
            "general.file_type": mostly.most_common(1)[0][0],
            "general.quantization_version": _QUANTIZATION_VERSION,
            **hyperparameters(source.config, architecture),
            **(vocabulary if files is None else tokenizer_metadata(files, contents.rows)),
        }

    def _tokenizer(self, source: Source) -> TokenizerFiles | None:
        """Return the files of the tokenizer; None where there is none, or none is wanted."""
        given = self.target.tokenizer
        if given is False:
            return None
        if isinstance(given, str | os.PathLike):
            return TokenizerFiles.read(Path(given))
        with TemporaryDirectory() as folder:
            write_companions(source.model, folder, config={}, tokenizer=given)
            if given is None and not (Path(folder) / TOKENIZER_NAME).is_file():
                return None
            return TokenizerFiles.read(Path(folder))


def _own_name(source: Source) -> str:
    """Return the last part of where the model was loaded from."""
    path: object = getattr(source.model, "name_or_path", "")
    return Path(path).name if isinstance(path, str) else ""


def _contents(source: Source) -> Contents:
    """Return what the file holds of a model that has no problems.

    Raises:
        UnsupportedError: it is of another architecture.
    """
    contents = Contents.of(source)
    if contents is None:
        raise UnsupportedError(*content_problems(source, nearest=False))
    return contents


GGUF_ENTRY: Final = exporter_entry(GGUF, GGUFExporter)
