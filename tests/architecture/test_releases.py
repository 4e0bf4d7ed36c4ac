"""What a release needs is kept up while work goes on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest
from packaging.version import Version

from distributions import ROOT

PACKAGES: Final = sorted((ROOT / "packages").iterdir())

PIN: Final = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>\S+)$", re.MULTILINE)
PINS: Final = {
    each["name"]: each["version"] for each in PIN.finditer((ROOT / "constraints.txt").read_text("utf-8"))
}


def _version(package: Path) -> Version:
    """Return the version that `package` declares."""
    return Version(tomllib.loads((package / "pyproject.toml").read_text("utf-8"))["project"]["version"])


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_changelog_begins_with_what_is_unreleased(package: Path) -> None:
    """A change has a place to be told: above the versions, of which all but the newest have dates."""
    first, *titles = re.findall("^## (.+)$", (package / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert first == "Unreleased"
    versions = [Version(title.partition(" ")[0]) for title in titles]
    assert versions == sorted(versions, reverse=True)
    assert all(version <= _version(package) for version in versions)
    assert [title for title in titles[1:] if not re.fullmatch(r"\S+ \(\d{4}-\d\d-\d\d\)", title)] == []


def test_citation_is_of_the_facade() -> None:
    """Whoever cites the library cites the version of the package that is installed for all of it."""
    version = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert version is not None
    assert Version(version[1]) == _version(ROOT / "packages" / "tico-api")


def test_commits_are_checked_by_the_tools_that_are_pinned() -> None:
    """A hook and the session `lint` never disagree because of their versions."""
    text = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    revisions = re.findall(r"repo: \S+/(\w+)(?:-pre-commit)?\n +rev: v(\S+)", text)
    assert revisions == [(name, PINS[name]) for name in ("ruff", "codespell")]
