"""One package that is broken stops nothing but what it was to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import nn

from tico.quantization import (
    GPTQConfig,
    PTQConfig,
    SmoothQuantConfig,
    convert,
    load_quantized,
    prepare,
    save_quantized,
)
from tico.quantization.config import BaseConfig
from tico_quantizers import QuantizedLinear
from tiny_models import values

GROUPS = ("tico.quantizers", "tico.wrappers", "tico.modules")
OFFERS = {
    "absent": "import no_such_module",
    "syntax": "def broken(",
    "raising": "raise SystemError('at import')",
    "without the name": "OTHER = 1",
    "something else": "OFFER = object()",
    "nothing": "OFFER = ()",
}
SECOND_WRAPPER = """
from torch import nn
from tico_wrapq import QuantUnary, wrapper_entry
class Mine(QuantUnary): pass
OFFER = (wrapper_entry(nn.ReLU, Mine),)
"""


def _install(folder: Path, group: str, code: str) -> None:
    """Put a distribution into `folder` whose module has `code`, and its `OFFER` in a group."""
    about = folder / "tico_lost-1.0.dist-info"
    about.mkdir()
    metadata = "Metadata-Version: 2.1\nName: tico-lost\nVersion: 1.0\n"
    (about / "METADATA").write_text(metadata, encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[{group}]\nlost = tico_lost_code:OFFER\n", encoding="utf-8")
    (folder / "tico_lost_code.py").write_text(code, encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that packages are imported from, and that forgets them."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "tico_lost_code", raising=False)
    return folder


@pytest.mark.parametrize(
    "config", [GPTQConfig(show_progress=False), PTQConfig(), SmoothQuantConfig()], ids=lambda c: c.name
)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.filterwarnings("ignore:the plug-in 'lost':RuntimeWarning")
def test_broken_plug_in_stops_no_other(
    config: BaseConfig, group: str, offer: str, site: Path, tmp_path: Path
) -> None:
    """Prepare, convert, save and load work as they did without it."""
    _install(site, group, OFFERS[offer])
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    prepared = prepare(model, config)
    prepared(values(0, 8, 4))
    converted = convert(prepared)
    if not isinstance(config, SmoothQuantConfig):
        save_quantized(converted, tmp_path / "saved")
        again = load_quantized(
            tmp_path / "saved", nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        )
        assert isinstance(again.get_submodule("1"), QuantizedLinear)


@pytest.mark.parametrize("group", GROUPS[:2])
@pytest.mark.parametrize("offer", ["absent", "syntax", "raising", "without the name", "something else"])
def test_broken_plug_in_is_named(group: str, offer: str, site: Path) -> None:
    """With its distribution, what was to be loaded, and the error."""
    _install(site, group, OFFERS[offer])
    told = r"the plug-in 'lost' \(tico_lost_code:OFFER\) of the distribution tico-lost cannot be used: "
    with pytest.warns(RuntimeWarning, match=told):
        prepare(nn.Sequential(nn.Linear(4, 4)).eval(), PTQConfig())


def test_wrapper_that_contradicts_another_is_left_out(site: Path) -> None:
    """The one that was there first stays."""
    _install(site, "tico.wrappers", SECOND_WRAPPER)
    with pytest.warns(RuntimeWarning, match="'lost'.*cannot be used: .*ReLU has two wrappers"):
        model = prepare(nn.Sequential(nn.ReLU()).eval(), PTQConfig())
    assert type(model.get_submodule("0")).__name__ == "QuantUnary"
