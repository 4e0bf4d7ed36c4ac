"""What is kept of the calls of blocks: when two arguments are one, and when a copy is no longer right."""

from __future__ import annotations

import gc
import tempfile
import weakref
from collections import UserDict
from pathlib import Path
from typing import NamedTuple

import attrs
import pytest
import torch
from torch import Tensor, nn

from tico_quantizers.calibration import (
    ActivationStore,
    BlockCalls,
    Calibration,
    Replay,
    Snapshots,
    map_leaves,
    revision,
    tensor_leaves,
)
from tico_quantizers.calibration._activation_store import StoredTensor
from tico_quantizers.calibration._call_template import CallTemplate
from tico_quantizers.calibration._calls import Call, FromBlock, Opaque, leaves_of, share_objects
from tico_quantizers.calibration._snapshots import same_bits, tensors_in, version
from tiny_models import values


class Pair(NamedTuple):
    """A tuple with names."""

    one: object
    two: object


class Noted:
    """An object to which weak references can be made."""

    def __init__(self, held: object = None) -> None:
        """Hold `held`."""
        self.held = held


def call_of(*args: object, **kwargs: object) -> Call:
    """Return a call with these arguments as its leaves."""
    return Call(args=args, kwargs=kwargs)


def taken(snapshots: Snapshots, *args: object) -> tuple[object, ...]:
    """Return what the snapshots keep of `args`."""
    return snapshots.take(args, {}, lambda _: None).args


def test_leaves_are_inside_tuples_lists_and_dicts() -> None:
    """What else holds something, shapes and subclasses of dicts among it, is a leaf."""
    tree = {"a": [1, (2, Pair(3, torch.Size([4])))]}
    assert leaves_of(call_of(tree)) == [1, 2, 3, torch.Size([4])]
    assert map_leaves(tree, str) == {"a": ["1", ("2", Pair("3", "torch.Size([4])"))]}
    other = UserDict(b=1)
    assert map_leaves(other, lambda leaf: leaf is other) is True


def test_outputs_that_are_mappings_hold_tensors() -> None:
    """The outputs of transformers are no dicts."""
    x, y = values(0, 2), values(1, 2)
    found = tensor_leaves(UserDict(a=x, b=(1, [y])))
    assert [one is other for one, other in zip(found, (x, y), strict=True)] == [True, True]


def test_arguments_that_were_one_tensor_are_one_again() -> None:
    """What a block writes to the one it finds in the other."""
    x = values(0, 3)
    ((one, other), kwargs, _), *_ = Replay([call_of(x, [x], y=x)], {})
    assert isinstance(other, list)
    assert one is other[0] is kwargs["y"]
    assert one is not x


def test_objects_live_from_their_first_call_to_their_last() -> None:
    """Each call gets the object that the one before it had, and nothing keeps it after the last."""
    opaque = Opaque(Noted())
    replay = iter(Replay([call_of(opaque), call_of(1), call_of(opaque), call_of(2)], {}))
    (first,), *_ = next(replay)
    assert isinstance(first, Noted)
    assert first is not opaque.copy
    next(replay)
    (again,), *_ = next(replay)
    assert again is first
    alive = weakref.ref(first)
    del first, again
    next(replay)
    gc.collect()
    assert alive() is None


def test_casts_of_a_call_hold_again_whatever_holds_outside() -> None:
    """Also where there were none and the blocks are run again inside a context with some."""
    without = call_of(1).autocast
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = call_of(1).autocast
        with without.again():
            assert not torch.is_autocast_enabled("cpu")
    with within.again():
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") is torch.bfloat16


def test_only_objects_that_may_change_are_shared() -> None:
    """Two calls with the same tensor or number are as independent as any others."""
    x, opaque = values(0, 3), Opaque(Noted())
    assert not share_objects([call_of(x, 1, None), call_of(x, 1, None)])
    assert not share_objects([call_of(opaque, opaque), call_of(Opaque(Noted()))])
    assert share_objects([call_of(opaque), call_of([opaque])])


def test_calls_that_follow_from_the_first() -> None:
    """The template puts the first call's own tensors and the numbers of the calls before into place."""
    mask, opaque = values(0, 3), Opaque(Noted())
    pass_ = [[call_of(values(1, 3), mask, opaque, 7)], [call_of(FromBlock(0, 0, 0), mask, opaque, 7)]]
    template = CallTemplate.of(pass_)
    assert template is not None
    first = call_of(values(2, 3), values(3, 3), Opaque(Noted()), 7)
    (made,) = template.calls(first, [5])
    assert made.args[0] == FromBlock(0, 5, 0)
    assert made.args[1] is first.args[1]
    assert made.args[2] is first.args[2]
    assert made.args[3] == 7
    assert template.fits(first)


def test_calls_that_do_not_follow_have_no_template() -> None:
    """No block, a block called twice or not at all, a tensor or object that the first was not given."""
    x = values(0, 3)
    assert CallTemplate.of([]) is None
    assert CallTemplate.of([[call_of(x)], []]) is None
    assert CallTemplate.of([[call_of(x)], [call_of(x), call_of(x)]]) is None
    assert CallTemplate.of([[call_of(x)], [call_of(values(1, 3))]]) is None
    assert CallTemplate.of([[call_of(x)], [call_of(Opaque(Noted()))]]) is None
    assert CallTemplate.of([[call_of(x)], [call_of(values(1, 3), x, FromBlock(0, 0, 0))]]) is None


def test_a_template_fits_calls_of_the_same_kind() -> None:
    """Other plain values, or an object where there was a tensor, are another call."""
    template = CallTemplate.of([[call_of(values(0, 3), 7)], [call_of(FromBlock(0, 0, 0))]])
    assert template is not None
    assert template.fits(call_of(values(1, 9), 7))
    for other in (call_of(values(1, 3), 8), call_of(Opaque(Noted()), 7), call_of(values(1, 3))):
        assert not template.fits(other)


def test_a_tensor_is_copied_once_while_it_stays() -> None:
    """Another copy is made as soon as a bit has changed, even past the version counter."""
    snapshots, mask, other = Snapshots(), values(0, 3), values(0, 3)
    (first,), (second,), (third,) = taken(snapshots, mask), taken(snapshots, mask), taken(snapshots, other)
    assert first is second
    assert third is not first
    mask.data[0] += 1
    (changed,) = taken(snapshots, mask)
    assert isinstance(changed, Tensor)
    assert torch.equal(changed, mask)
    assert changed is not first


def test_bits_are_the_same_only_in_the_same_format() -> None:
    """Type and shape count, and so do the signs of zeros."""
    x = values(0, 4)
    assert same_bits(x, x.clone())
    for other in (x.view(2, 2), x.view(torch.int32), x * 2):
        assert not same_bits(x, other)
    assert not same_bits(torch.zeros(1), -torch.zeros(1))


def test_revisions_change_when_something_writes() -> None:
    """By the version, or by the sum of the bytes where a tensor has none; one without values has one, too."""
    with torch.inference_mode():
        unversioned = torch.ones(3)
        assert version(unversioned) is None
        assert revision(torch.ones(0)) == 0
    for x in (torch.ones(3), unversioned):
        before = revision(x)
        assert revision(x) == before
        with torch.inference_mode(x.is_inference()):
            x.add_(1)
        assert revision(x) != before
    x = torch.tensor([1.0, 2.0])
    assert version(x) == x._version
    before = revision(x)
    x.copy_(x.flip(0))
    assert revision(x) != before


def test_an_object_is_copied_again_when_something_outside_has_changed_it() -> None:
    """Its tensors, their number, or their versions; what a block does to it is taken for granted."""
    memory = Noted([values(0, 3)])
    snapshots = Snapshots()
    (first,) = taken(snapshots, memory)
    assert taken(snapshots, memory) == (first,)
    held = memory.held
    assert isinstance(held, list)
    held[0].add_(1)
    (second,) = taken(snapshots, memory)
    assert second is not first
    held.append(values(1, 3))
    (third,) = taken(snapshots, memory)
    assert third is not second
    held[0] = values(2, 3)
    (fourth,) = taken(snapshots, memory)
    assert fourth is not third
    held[0].add_(1)
    snapshots.settle()
    assert taken(snapshots, memory) == (fourth,)
    del held[0]
    (fifth,) = taken(snapshots, memory)
    assert fifth is not fourth


def test_tensors_without_versions_are_told_apart_by_what_they_are() -> None:
    """A cache in inference mode that holds the same tensors is taken for unchanged."""
    with torch.inference_mode():
        memory, snapshots = Noted([values(0, 3) * 1]), Snapshots()
        (first,) = taken(snapshots, memory)
        assert taken(snapshots, memory) == (first,)
        memory.held = [values(0, 3) * 1]
        assert taken(snapshots, memory) != (first,)


def test_what_has_gone_is_forgotten() -> None:
    """Nothing is kept of tensors and objects of earlier passes but what stands for them."""
    snapshots, mask, memory = Snapshots(), values(0, 3), Noted()
    kept = [weakref.ref(each) for each in taken(snapshots, mask, memory)]
    snapshots.settle()
    assert all(reference() is not None for reference in kept)
    del mask, memory
    snapshots.settle()
    gc.collect()
    assert all(reference() is None for reference in kept)


def test_plain_values_and_modules_are_no_copies() -> None:
    """They stand for themselves, and nobody looks into a module for tensors."""
    layer = nn.Linear(2, 2)
    plain = (None, 1, "a", layer, torch.float32, slice(2))
    assert taken(Snapshots(), *plain) == plain
    assert tensors_in([layer, plain]) == []


def test_tensors_are_found_wherever_an_object_holds_them() -> None:
    """Once each, in containers and attributes, also of objects that hold each other."""
    x, y = values(0, 2), values(1, 2)
    one = Noted({"x": x, "more": [(y,), {1, 2}]})
    other = Noted(one)
    one.__dict__["back"] = other
    assert {id(tensor) for tensor in tensors_in(other)} == {id(x), id(y)}
    assert len(tensors_in([x, x])) == 1


def test_objects_without_weak_references_are_kept_as_they_are() -> None:
    """A copy is made, and the object itself is held until then."""

    @attrs.define(eq=False, weakref_slot=False)
    class Slotted:
        held: int

    snapshots, slotted = Snapshots(), Slotted(1)
    (first,) = taken(snapshots, slotted)
    assert isinstance(first, Opaque)
    assert first.copy is not slotted
    assert taken(snapshots, slotted) == (first,)


def test_a_block_runs_from_its_call_to_its_output() -> None:
    """What layers read then is the block's; outside, it is the model's."""
    block = nn.Sequential(nn.Linear(2, 2))
    calls, seen = BlockCalls((block,)), list[bool]()
    calls.watch(Calibration(calls))
    block[0].register_forward_hook(lambda *_: seen.append(calls.is_running))
    block(values(0, 2))
    assert seen == [True]
    assert not calls.is_running


def test_blocks_are_chained_if_one_reads_another() -> None:
    """Blocks that all read the model's own input are not, nor is one alone."""
    blocks = nn.Linear(2, 2), nn.Linear(2, 2)
    for chained in (True, False):
        calls, x = BlockCalls(blocks), values(0, 2)
        handles = calls.watch(Calibration(calls))
        blocks[1](blocks[0](x) if chained else x)
        assert calls.follows(1) == chained
        assert calls.follows(0) != chained  # where it is never called there is nothing to follow
        assert calls.lists(["layers.0", "layers.1"]) == ({"layers"} if chained else set())
        assert calls.lists(["layers.0", "others.0"]) == set()
        for handle in handles:
            handle.remove()


def test_what_blocks_give_while_nobody_watches_is_not_noted() -> None:
    """A tensor from such a call is kept as it is when a block is given it later."""
    blocks = nn.Linear(2, 2), nn.Linear(2, 2)
    calls = BlockCalls(blocks)
    calibration = Calibration(calls)
    calls.watch(calibration)
    calibration.watching = False
    hidden = blocks[0](values(0, 2))
    calibration.watching = True
    blocks[1](hidden)
    none, (call,) = calls.accepted
    assert none == []
    assert isinstance(call.args[0], Tensor)


def test_one_call_of_the_first_block_tells_the_rest() -> None:
    """As long as it is the only call of the pass, and like that of the pass that showed how calls follow."""
    blocks = nn.Linear(2, 2), nn.Linear(2, 2)
    calls, x = BlockCalls(blocks), values(0, 2)
    calls.note_call(0, (x, 7), {})
    hidden = blocks[0](x)
    calls.note_output(0, hidden)
    calls.note_call(1, (hidden,), {})
    calls.digest()
    calls.accept()
    template = calls.template
    assert template is not None
    assert not calls.rest_is_known(template)
    calls.note_call(0, (x, 7), {})
    assert calls.rest_is_known(template)
    calls.note_call(1, (hidden,), {})
    assert not calls.rest_is_known(template)
    calls.drop_calls()
    for _ in range(2):
        calls.note_call(0, (x, 7), {})
    assert not calls.rest_is_known(template)
    calls.drop_calls()
    calls.note_call(0, (x, 8), {})
    assert not calls.rest_is_known(template)
    calls.drop_calls()
    calls.note_call(0, (x, 7), {})
    calls.complete(template)
    calls.accept()
    assert [call.args for call in calls.accepted[1]] == [(FromBlock(0, 0, 0),), (FromBlock(0, 1, 0),)]


def test_a_pass_that_leaves_a_block_out_has_no_template() -> None:
    """Nothing says then what the block would be given."""
    calls = BlockCalls((nn.Linear(2, 2), nn.Linear(2, 2)))
    calls.note_call(0, (values(0, 2),), {})
    calls.digest()
    assert calls.template is None


def test_what_blocks_share_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that every block of a pass is given is one file."""
    monkeypatch.setattr("tico_quantizers.calibration._activation_store._SMALLEST", 1)
    calls, mask = (
        BlockCalls((nn.Linear(2, 2), nn.Linear(2, 2)), ActivationStore(offload=Path(tempfile.gettempdir()))),
        values(0, 2),
    )
    for number in (0, 1):
        calls.note_call(number, (values(number, 2), mask), {})
    calls.digest()
    calls.accept()
    (first,), (second,) = calls.accepted
    assert isinstance(first.args[1], StoredTensor)
    assert first.args[1] is second.args[1]
