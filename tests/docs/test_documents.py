"""The documents can be trusted: code runs, links lead somewhere, commands are those that are checked."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest
from sybil import Document, Region
from sybil.document import PythonDocStringDocument
from sybil.parsers.abstract.doctest import DocTestStringParser
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer
from sybil.parsers.rest import DocTestParser

from distributions import ROOT
from tico import quantization
from tico.quantization import config

PATTERNS: Final = ("*.md", "docs/**/*.md", "packages/*/*.md", "examples/**/*.md", "benchmarks/**/*.md")
DOCUMENTS: Final = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
MODULES: Final = sorted(ROOT.glob("packages/*/src/**/*.py"))

RUN: Final = {"pycon", "python"}
NOT_RUN: Final = {"bash", "json", "text", "toml"}

TEST_FILE: Final = re.compile(r"# file: \S+/test_\w+\.py\n")

CONFIG: Final = re.compile(r"`(profiles\.[A-Z_]+\.configs?\([^`…]+\))`")
LINK: Final = re.compile(r"\]\((?!\w+:|#)(?P<target>[^)#\s]+)")
SESSION: Final = re.compile(r"nox -s (?P<name>[\w-]+)")


def _named(path: Path) -> str:
    """Name a parametrized test after the file it is about."""
    return str(path.relative_to(ROOT))


every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=_named)


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a folder of its own that shows the examples: what code saves does not litter the repository."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@every_document
@pytest.mark.usefixtures("working_folder")
def test_code_of_document_runs(path: Path) -> None:
    """Every block in Python runs as it stands, from the top of the document down."""
    for example in Document.parse(str(path), PythonCodeBlockParser(), _console_sessions):
        # The tests of a worked example run where it is installed, in tests/integration.
        if not TEST_FILE.match(str(example.region.parsed)):
            example.evaluate()


@pytest.mark.parametrize("path", MODULES, ids=_named)
@pytest.mark.usefixtures("working_folder")
def test_examples_of_docstrings_run(path: Path) -> None:
    """Every example of a module's docstrings shows what it says, with the module's names at hand."""
    document = PythonDocStringDocument.parse(str(path), DocTestParser())
    assert isinstance(document, PythonDocStringDocument)
    # Sybil would look for the module itself, and does not find it below a namespace package.
    document.pop_evaluator(document.import_document)
    examples = [*document]
    if examples:  # a module without any may need a library that is not installed here
        document.namespace.update(vars(importlib.import_module(_module_name(path))))
    for example in examples:
        example.evaluate()


@every_document
def test_every_block_is_of_a_known_language(path: Path) -> None:
    """No block escapes being run by a language that nobody thought of, or by none."""
    lexer = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[^\n]*)\n"))
    blocks = lexer(Document(path.read_text(encoding="utf-8"), str(path)))
    assert {block.lexemes["language"].strip() for block in blocks} <= RUN | NOT_RUN


@every_document
def test_every_link_leads_somewhere(path: Path) -> None:
    """A relative link names a file of the repository."""
    targets = [match["target"] for match in LINK.finditer(path.read_text(encoding="utf-8"))]
    assert [target for target in targets if not (path.parent / target).exists()] == []


@every_document
def test_every_config_of_a_profile_is_legal(path: Path) -> None:
    """A profile gives the configs that a document asks of it in passing."""
    names = {**vars(config), **vars(quantization)}
    for expression in CONFIG.findall(path.read_text(encoding="utf-8")):
        assert eval(expression, names)  # noqa: S307  # from a document of this repository


@every_document
def test_every_session_named_exists(path: Path) -> None:
    """A document names sessions that nox has."""
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    sessions = re.findall(r"^def (\w+)\(session: nox\.Session\b", noxfile, re.MULTILINE)
    named = {match["name"] for match in SESSION.finditer(path.read_text(encoding="utf-8"))}
    assert named <= set(sessions)


def test_commands_of_readme_are_those_that_are_checked() -> None:
    """The README's two commands are the quickstart and the tests, and the latter is run word for word."""
    quickstart, tests = _commands(ROOT / "README.md")[:2]
    setup = tests.removesuffix(".venv/bin/nox")
    checked = (ROOT / ".ci" / "run").read_text().splitlines()
    assert quickstart == f"{setup}.venv/bin/nox -s quickstart"
    assert {f"({tests})", ".venv/bin/nox -s wheels", ".venv/bin/nox -s quickstart -- --short"} <= {*checked}


def _console_sessions(document: Document) -> Iterable[Region]:
    """Yield the examples of the blocks that show an interactive session."""
    for block in CodeBlockParser("pycon")(document):
        source = block.parsed
        for region in DocTestStringParser()(source, document.path):
            region.adjust(block, source)
            yield region


def _module_name(path: Path) -> str:
    """Return the name to import the module in `path` by."""
    parts = path.relative_to(ROOT).with_suffix("").parts[3:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _commands(path: Path) -> list[str]:
    """Return the lines of the shell blocks of a document."""
    blocks = CodeBlockParser("bash")(Document(path.read_text(encoding="utf-8"), str(path)))
    return [line for block in blocks for line in block.parsed.strip().splitlines()]
