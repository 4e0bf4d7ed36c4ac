"""Links between documents of the repository, as the site has them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_LINK: Final = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?!\w+:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
_FENCED: Final = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_HIDDEN: Final = re.compile(r"^<!-- invisible-code-block: .*?-->\n", re.MULTILINE | re.DOTALL)


def documents_as_pages(root: Path) -> dict[str, str]:
    """Return the page of each document outside of `docs`, both as paths: of the repository, and of the site.

    >>> documents_as_pages(Path())["GLOSSARY.md"]
    'reference/glossary.md'
    """
    pages = {
        "CONTRIBUTING.md": "contributing.md",
        "GLOSSARY.md": "reference/glossary.md",
        "SECURITY.md": "reference/security.md",
        "benchmarks/RESULTS.md": "reference/results.md",
    }
    for package in sorted(path.name for path in root.glob("packages/*")):
        pages[f"packages/{package}/README.md"] = f"reference/packages/{package}.md"
        pages[f"packages/{package}/CHANGELOG.md"] = f"reference/changes/{package}.md"
    return pages


def scripts_as_pages(root: Path) -> dict[str, str]:
    """Return the page that shows each example."""
    paths = sorted(path.relative_to(root).as_posix() for path in root.glob("examples/*.py"))
    return {path: path.removesuffix(".py") + ".md" for path in paths}


def without_hidden_code(text: str) -> str:
    r"""Return `text` without code that is run and not shown.

    >>> without_hidden_code("<!-- invisible-code-block: python\nimport torch\n-->\nText.")
    'Text.'
    """
    return _HIDDEN.sub("", text)


def with_links_of_site(text: str, source: str, page: str, pages: Mapping[str, str]) -> str:
    """Return `text`, which is the file `source` of the repository, with links as its `page` has them.

    A link to a file that has no page becomes its text.

    >>> pages = {"GLOSSARY.md": "reference/glossary.md"}
    >>> with_links_of_site("[words](../GLOSSARY.md#unit)", "docs/index.md", "index.md", pages)
    '[words](reference/glossary.md#unit)'
    >>> with_links_of_site("[checks](../noxfile.py)", "docs/index.md", "index.md", pages)
    'checks'
    """

    def moved(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found["target"]))
        place = target.removeprefix("docs/") if target.startswith("docs/") else pages.get(target)
        if place is None:
            return found["text"]
        relative = posixpath.relpath(place, posixpath.dirname(page) or ".")
        return f"[{found['text']}]({relative}{found['anchor'] or ''})"

    parts = _FENCED.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)
