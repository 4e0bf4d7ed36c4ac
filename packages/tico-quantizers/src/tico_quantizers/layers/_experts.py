"""Experts: the modules of a list of which each token passes through a few only."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from tico_modules import child_path, children, named_modules


def peers_of(model: nn.Module) -> dict[str, str]:
    """Return, for each path inside of a list of alike modules, the path with ``*`` for the place in the list.

    Of lists in lists the inner one counts.

    >>> peers_of(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]))
    {'0': '*', '1': '*'}
    """
    peers: dict[str, str] = {}
    for path, module in named_modules(model):
        inside = children(module)
        if isinstance(module, nn.ModuleList) and len({type(child) for child in inside.values()}) == 1:
            for name, child in inside.items():
                for below, _ in named_modules(child):
                    place, any_place = child_path(path, name), child_path(path, "*")
                    tail = f".{below}" if below else ""
                    peers[f"{place}{tail}"] = f"{any_place}{tail}"
    return peers


def less_read(rows: Mapping[str, int], peers: Mapping[str, str]) -> frozenset[str]:
    """Return the paths that read fewer `rows` than one of their peers: experts, and not the one read most.

    >>> sorted(less_read({"0": 3, "1": 5, "2": 0}, {"0": "*", "1": "*", "2": "*"}))
    ['0', '2']
    """
    most: dict[str, int] = {}
    for path, place in peers.items():
        most[place] = max(most.get(place, 0), rows.get(path, 0))
    return frozenset(path for path, place in peers.items() if rows.get(path, 0) < most[place])
