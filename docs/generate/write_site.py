"""Write what a site generator reads: the pages of `docs`, those made of other files, and the configuration.

python docs/generate/write_site.py    writes out/docs; `nox -s site` builds the site from that

Everything that is special about this project's site happens here, in Markdown, so that the generator is only
asked for what all of them do.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from api_pages import PublicModule, public_modules
from config_tables import with_fields
from error_tables import with_messages
from repository_links import documents_as_pages, scripts_as_pages, with_links_of_site, without_hidden_code
from result_tables import with_results

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
WRITTEN: Final = ROOT / "out" / "docs"
RESULTS: Final = ROOT / "benchmarks" / "results"

# The line of mkdocs.yml that stands for the pages that no one has to list, with its indentation.
PLACE: Final = "      # generated pages\n"


def main() -> None:
    """Write out/docs anew, but for the built site in it."""
    shutil.rmtree(WRITTEN / "source", ignore_errors=True)
    modules = public_modules(ROOT)
    for page, text in _pages(modules):
        _write(WRITTEN / "source" / page, text)
    for path in DOCS.rglob("*"):
        if path.suffix in {".css", ".js", ".svg"}:
            target = WRITTEN / "source" / path.relative_to(DOCS)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    template = (DOCS / "mkdocs.yml").read_text(encoding="utf-8")
    _write(WRITTEN / "mkdocs.yml", template.replace(PLACE, "".join(_navigation(modules))))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _pages(modules: list[PublicModule]) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every page."""
    documents, scripts = documents_as_pages(ROOT), scripts_as_pages(ROOT)
    own = {
        path.relative_to(ROOT).as_posix(): path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")
    }
    for source, page in (own | documents).items():
        text = without_hidden_code((ROOT / source).read_text(encoding="utf-8"))
        filled = with_messages(with_results(with_fields(text), RESULTS), ROOT)
        yield page, with_links_of_site(filled, source, page, documents | scripts)
    for source, page in scripts.items():
        code = (ROOT / source).read_text(encoding="utf-8")
        yield page, f"# {source}\n\n```python\n{code}```\n"
    for module in modules:
        yield module.page, module.text()


def _navigation(modules: list[PublicModule]) -> Iterator[str]:
    """Yield the lines of the navigation for packages, public modules, changes and examples."""
    packages = sorted({each.package for each in modules}, key=_position)
    yield from _branch("Packages", [(name, f"reference/packages/{name}.md") for name in packages])
    for name in packages:
        own = [each for each in modules if each.package == name]
        yield from _branch(f"API of {name}", [(each.title, each.page) for each in own])
    yield from _branch("Changes", [(name, f"reference/changes/{name}.md") for name in packages])
    examples = sorted(scripts_as_pages(ROOT).values())
    yield from _branch("Examples", [(Path(page).stem, page) for page in examples])


def _branch(title: str, pages: list[tuple[str, str]]) -> Iterator[str]:
    yield f"      - {title}:\n"
    for name, page in pages:
        yield f"          - {name}: {page}\n"


def _position(package: str) -> int:
    """Return where a package stands: what users install first, then from the bottom up."""
    order = ("api", "cli", "config", "observers", "modules", "export", "quantizers", "pt2e", "wrapq")
    name = package.removeprefix("tico-")
    return order.index(name) if name in order else len(order)


if __name__ == "__main__":
    main()
