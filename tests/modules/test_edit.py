"""Changes of a module tree: found everywhere, undone completely, without searching the whole tree."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from tico_quantizers import Edit, named_modules
from tico_quantizers.testing import modules_by_path, unchanged


def test_named_modules_are_those_of_torch() -> None:
    """Same modules, same paths, same order, shared ones once or at every path."""
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ModuleDict({"b": shared, "a": nn.Sequential(nn.ReLU(), shared)}))
    assert list(named_modules(model)) == list(model.named_modules())
    everywhere = list(model.named_modules(remove_duplicate=False))
    assert list(named_modules(model, every_path=True)) == everywhere


def test_module_is_replaced_at_each_of_its_places() -> None:
    """A shared module is replaced wherever it stands below the root."""
    old, new = nn.Linear(2, 2), nn.ReLU()
    model = nn.Sequential(old, nn.Sequential(old, nn.ModuleDict({"x": old})))
    with Edit() as edit:
        assert edit.replace(model, old, new) is model
    assert {path for path, module in modules_by_path(model).items() if module is new} == {"0", "1.0", "1.1.x"}
    assert old not in modules_by_path(model).values()


def test_root_is_replaced_by_being_returned() -> None:
    """Nothing is written to a root that is replaced as a whole."""
    root, new = nn.Linear(2, 2), nn.ReLU()
    with unchanged(root), Edit() as edit:
        assert edit.replace(root, root, new) is new


def test_replacement_may_hold_what_it_replaces() -> None:
    """A wrapper keeps the module inside, and can be replaced in its turn."""
    layer = nn.Linear(2, 2)
    model = nn.Sequential(nn.Sequential(layer))
    wrapper, last = nn.Sequential(layer), nn.ReLU()
    with Edit() as edit:
        edit.replace(model, layer, wrapper)
        assert modules_by_path(model)["0.0.0"] is layer
        edit.replace(model, wrapper, last)
    assert modules_by_path(model)["0.0"] is last
    assert wrapper[0] is layer


def test_what_was_taken_out_is_not_written_to() -> None:
    """A module that only the removed parent and its replacement hold is replaced in the latter alone."""
    inner, new = nn.Linear(2, 2), nn.ReLU()
    removed = nn.Sequential(inner)
    model = nn.Sequential(removed)
    with unchanged(removed), Edit() as edit:
        edit.replace(model, removed, nn.ModuleDict({"kept": inner}))
        edit.replace(model, inner, new)
    assert modules_by_path(model)["0.kept"] is new


def test_exception_undoes_every_replacement() -> None:
    """The tree is the one that it was, in the order that it had."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.Sequential(first, nn.Sequential(second, first))
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        _replace_and_fail(model, first, second)


def _replace_and_fail(model: nn.Module, *old: nn.Module) -> None:
    with Edit() as edit:
        for module in old:
            edit.replace(model, module, nn.Sequential(module))
        raise KeyboardInterrupt


def test_replacing_every_module_looks_at_each_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree is searched once, not once for each replacement."""
    looks: list[nn.Module] = []

    def counted(module: nn.Module) -> dict[str, nn.Module]:
        looks.append(module)
        return dict(module.named_children())

    monkeypatch.setattr("tico_modules._tree.edit.children", counted)
    model = nn.Sequential(*(nn.ReLU() for _ in range(300)))
    with Edit() as edit:
        for module in list(model):
            edit.replace(model, module, nn.Identity())
    assert len(looks) == 601


def test_modules_that_hold_each_other_are_searched_once() -> None:
    """A tree with a circle in it is edited like any other."""
    leaf, one, two = nn.Linear(2, 2), nn.ModuleDict(), nn.ModuleDict()
    one["two"], two["one"], two["leaf"] = two, one, leaf
    model, new = nn.Sequential(one), nn.ReLU()
    with Edit() as edit:
        edit.replace(model, leaf, new)
    assert two["leaf"] is new


@pytest.mark.parametrize("before", [{"mode": 1}, {}], ids=["there", "not there"])
def test_exception_undoes_attributes(before: dict[str, object]) -> None:
    """One that was there gets its value back, another one is removed."""
    owner = SimpleNamespace(**before)
    with pytest.raises(KeyboardInterrupt):
        _set_and_fail(owner)
    assert vars(owner) == before


def _set_and_fail(owner: object) -> None:
    with Edit() as edit:
        edit.set_attribute(owner, "mode", 2)
        edit.set_attribute(owner, "mode", 3)
        raise KeyboardInterrupt
