"""What the site is built from says what its sources say, and has a page for everything that is public."""

from __future__ import annotations

import doctest
import importlib
import json
import re
from pathlib import Path
from typing import Final

import pytest

import api_pages
import error_tables
import repository_links
import result_tables
from distributions import LAYERS, ROOT
from tico import quantization
from tico.quantization import BUILT_IN
from tico.quantization.config import BaseConfig

CONFIGURATION: Final = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
PAGES: Final = sorted(path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md"))


@pytest.mark.parametrize(
    "module", [api_pages, error_tables, repository_links], ids=lambda module: module.__name__
)
def test_examples_of_the_generator_run(module: object) -> None:
    """Every example of its docstrings shows what it says."""
    results = doctest.testmod(module)  # type: ignore[arg-type]  # a module, which mypy knows as an object
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("page", PAGES)
def test_page_is_in_navigation(page: str) -> None:
    """No page is out of reach."""
    assert f" {page}\n" in CONFIGURATION


def test_every_public_module_has_a_page() -> None:
    """Every package takes part, and a page lists what the module itself lists."""
    pages = api_pages.public_modules(ROOT)
    assert {each.package for each in pages} == {*LAYERS}
    for each in pages:
        names = importlib.import_module(each.name).__all__
        assert {*each.members} <= {*names}
    facade = next(each for each in pages if each.title == "tico.quantization")
    assert [*facade.members] == sorted(quantization.__all__)


@pytest.mark.parametrize("kind", BUILT_IN.config_types, ids=lambda kind: kind.__name__)
def test_every_config_has_its_fields_listed(kind: type[BaseConfig]) -> None:
    """An algorithm that is added has its config in the reference."""
    text = (ROOT / "docs" / "reference" / "configs.md").read_text(encoding="utf-8")
    assert f"## {kind.__name__}\n" in text
    assert f"<!-- fields: {kind.__name__} -->" in text


@pytest.mark.parametrize("name", error_tables.error_names())
def test_every_error_has_its_messages_listed(name: str) -> None:
    """A class of errors that is added has a part in the reference, and the code raises it somewhere."""
    text = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    assert f"## {name}\n" in text
    assert f"<!-- messages: {name} -->" in text
    assert error_tables.messages(ROOT)[name]


def test_message_is_listed_with_its_cure() -> None:
    """A message stands with the class that is raised, in words that the code has, and with what to do."""
    found = error_tables.messages(ROOT)
    sentence = "group_size={size} does not divide its … input columns"
    assert [each.package for each in found["ConfigError"] if each.text == sentence] == ["tico-quantizers"]
    assert "no calibration data reached it" in {each.text for each in found["CalibrationError"]}
    assert all(each.cure for each in found["MissingExtraError"])


def test_result_has_the_figures_of_its_file() -> None:
    """A table on a page is the recorded one, with its machine and commit."""
    folder = ROOT / "benchmarks" / "results"
    text = result_tables.with_results("<!-- result: gptq_defaults_wiki -->", folder)
    recorded = json.loads((folder / "gptq_defaults_wiki.json").read_text(encoding="utf-8"))
    for table in recorded["tables"]:
        for row in table["rows"]:
            assert f"| {row['name']} | {' | '.join(row['cells'])} |" in text
    assert recorded["commit"] in text


def test_readme_shows_recorded_figures() -> None:
    """The table of the first page is that of the file that it names."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- shows: ([\w-]+) -->\n\n(.+?</small>)", text, re.DOTALL)
    assert found is not None
    place = f"<!-- result: {found[1]} -->"
    assert found[2] == result_tables.with_results(place, ROOT / "benchmarks" / "results")


def test_result_that_is_not_there_is_an_error() -> None:
    """A page does not lose a table because a benchmark has renamed it."""
    with pytest.raises(ValueError, match="has 'no such title' in its title"):
        result_tables.with_results("<!-- result: plan | no such title -->", ROOT / "benchmarks" / "results")


@pytest.mark.parametrize("page", PAGES)
def test_paragraphs_are_short(page: str) -> None:
    """No paragraph of the site's own pages has more than five lines."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", (ROOT / "docs" / page).read_text("utf-8"), flags=re.DOTALL)
    paragraphs = [part.strip() for part in text.split("\n\n")]
    prose = [part for part in paragraphs if not part.startswith(("|", "-", "*", "1.", "#"))]
    assert [part for part in prose if len(part.splitlines()) > 5] == []


def test_link_leads_from_page_to_page() -> None:
    """A link out of `docs` leads to the page that the file has on the site; one within code stays."""
    pages = repository_links.documents_as_pages(ROOT) | repository_links.scripts_as_pages(ROOT)
    text = "[a](../../examples/lora.py) and [b](../how-to/gptq.md)\n\n```text\n[c](../../GLOSSARY.md)\n```\n"
    found = repository_links.with_links_of_site(text, "docs/reference/x.md", "reference/x.md", pages)
    assert found.splitlines()[0] == "[a](../examples/lora.md) and [b](../how-to/gptq.md)"
    assert "[c](../../GLOSSARY.md)" in found


def test_every_source_has_its_own_page() -> None:
    """No two files are one page."""
    pages = repository_links.documents_as_pages(ROOT) | repository_links.scripts_as_pages(ROOT)
    assert len({*pages.values(), *PAGES}) == len(pages) + len(PAGES)
    assert all(Path(ROOT / source).exists() for source in pages)
