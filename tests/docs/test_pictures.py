"""The pictures of the gallery are those that the recorded results give, and every one is shown and told."""

from __future__ import annotations

import re
from typing import Final

import pytest

import pictures
import result_tables
from distributions import ROOT

GALLERY: Final = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
SHOWN: Final = re.compile(r"!\[(?P<text>[^\]]+)\]\((?P<path>[^)]*gallery/(?P<name>\w+)\.svg)\)")

every_picture = pytest.mark.parametrize("name", list(pictures.DRAWN))


@every_picture
def test_picture_is_drawn_from_results(name: str) -> None:
    """The committed file has the bytes that the code draws; `nox -s pictures` writes it anew."""
    assert (pictures.PICTURES / f"{name}.svg").read_text(encoding="utf-8") == pictures.svg(name)


def test_no_picture_is_left_over() -> None:
    """A picture that is no longer drawn is not kept."""
    assert {path.name for path in pictures.PICTURES.iterdir()} == {f"{name}.svg" for name in pictures.DRAWN}


def test_gallery_shows_every_picture_once() -> None:
    """None is forgotten, none is there twice."""
    assert sorted(found["name"] for found in SHOWN.finditer(GALLERY)) == sorted(pictures.DRAWN)


@pytest.mark.parametrize("page", ["README.md", "docs/gallery.md"])
def test_picture_is_told_in_words(page: str) -> None:
    """A reader who does not see a picture learns what is in it."""
    found = [*SHOWN.finditer((ROOT / page).read_text(encoding="utf-8"))]
    assert found
    assert [each["name"] for each in found if len(each["text"].split()) < 20] == []


@every_picture
def test_picture_suits_light_and_dark(name: str) -> None:
    """Ink, background and rules have no colour but that of the reader's scheme."""
    style = re.search(r"<style>(svg .+?)</style>", text := pictures.svg(name))
    assert style is not None
    light, dark = (re.findall(r"#\w{6}", part) for part in style[1].split("@media"))
    assert (light, dark) == (list(pictures.DARK), list(pictures.DARK.values()))
    assert not {*light} & {*re.findall(r"#\w{6}", text.replace(style[0], ""))}


def test_command_is_that_of_the_file() -> None:
    """A page says what measured a picture's figures."""
    found = result_tables.with_results("<!-- measured by: kv_cache -->", pictures.RESULTS)
    assert "```bash\nOMP_NUM_THREADS=1 python benchmarks/kv_cache.py\n```" in found
