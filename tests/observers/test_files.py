"""Sealed files: what writing promises, and what reading refuses."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from tico_config import ArtifactError, UnsupportedError
from tico_observers import (
    GramStatistic,
    HistogramStatistic,
    Statistic,
    load_statistics,
    read_sealed,
    read_statistics,
    save_statistics,
    write_sealed,
)

SEEN = {"act": HistogramStatistic().observe(torch.tensor([1.0, 2.0, -3.0]))}

SAVE = """
import sys, torch
from tico_observers import HistogramStatistic, save_statistics
save_statistics(sys.argv[1], {"act": HistogramStatistic().observe(torch.tensor([1.0, 2.0, -3.0]))})
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give a file that holds the statistics."""
    target = tmp_path / "seen.statistics"
    save_statistics(target, SEEN)
    return target


def resealed(path: Path, **changes: object) -> None:
    """Write the file anew with some settings of its statistic changed, and a seal that fits."""
    sealed = read_sealed(path)
    about = json.loads(sealed.about)
    about["statistics"]["act"].update(changes)
    write_sealed(path, json.dumps(about), sealed.tensors)


def refused(path: Path) -> ArtifactError:
    """Return the error that reading gives."""
    with pytest.raises(ArtifactError) as caught:
        load_statistics(path)
    assert caught.value.module == str(path)
    return caught.value


def test_every_process_writes_the_same_bytes(path: Path, tmp_path: Path) -> None:
    """The file of another process is the same file."""
    other = tmp_path / "other"
    subprocess.run([sys.executable, "-c", SAVE, str(other)], check=True)
    assert other.read_bytes() == path.read_bytes()


def test_the_layout_is_that_of_safetensors(path: Path) -> None:
    """Eight bytes of length, a JSON header with offsets, then the data, aligned."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    start, stop = header["act.counts"]["data_offsets"]
    counts = torch.frombuffer(bytearray(content[8 + length + start : 8 + length + stop]), dtype=torch.int64)
    assert counts.tolist() == [1, 1, 1]
    assert sorted(header["__metadata__"]) == ["format", "tico"]


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"\xff" * 8, b"\0" * 8, b"\x02" + b"\0" * 7 + b"[]", b"{}" * 99]
)
def test_other_files_are_refused(path: Path, content: bytes) -> None:
    """Too short, too long a header, no object, no metadata."""
    path.write_bytes(content)
    assert refused(path).field == "file"


def test_every_flipped_bit_and_every_truncation_is_refused(path: Path) -> None:
    """All of them, one after the other."""
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        changed = bytearray(content)
        changed[at] ^= 1 << (at % 8)
        path.write_bytes(changed)
        refused(path)
    for length in range(0, len(content), 5):
        path.write_bytes(content[:length])
        refused(path)


def test_zip_and_pickle_files_are_refused_unread(path: Path) -> None:
    """Neither is unpacked or unpickled."""
    torch.save({"a": torch.zeros(2)}, path)
    assert zipfile.is_zipfile(path)
    refused(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    refused(path)


def test_reading_runs_nothing(path: Path) -> None:
    """No pickle, no exec and no import on the way, as the interpreter itself reports."""
    script = """
import sys
from tico_observers import load_statistics
seen = []
sys.addaudithook(lambda event, args: seen.append(event))
load_statistics(sys.argv[1])
print(sorted({"pickle.find_class", "exec", "compile", "import"} & {*seen}))
"""
    command = [sys.executable, "-c", script, str(path)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": "os.system"}, "act.kind"),
        ({"kind": "RangeStatistic"}, "act.counts"),
        ({"kind": "EMAStatistic"}, "act.momentum"),
        ({"granularity": {"kind": "PerChannel", "axis": 0}}, "act.minimum"),
        ({"granularity": {"kind": "PerChannel", "axis": 99}}, "act.granularity"),
        ({"granularity": None}, "act.granularity"),
        ({"on_nonfinite": "maybe"}, "act.on_nonfinite"),
        ({"dropped": -1}, "act.dropped"),
        ({"dropped": 1}, "act.dropped"),
        ({"more": 1}, "act.more"),
    ],
)
def test_settings_that_cannot_be_are_refused(path: Path, changes: dict[str, object], field: str) -> None:
    """A seal that fits does not make sense of settings that do not."""
    resealed(path, **changes)
    assert refused(path).field == field


@pytest.mark.parametrize(
    ("tensor", "value", "field"),
    [
        ("counts", torch.tensor([1, 1]), "act.counts"),
        ("counts", torch.tensor([1, 0, 1]), "act.counts"),
        ("keys", torch.tensor([3, 2, 1]), "act.keys"),
        ("keys", torch.tensor([1, 2, 2**40]), "act.keys"),
        ("minimum", torch.tensor(torch.nan), "act.maximum"),
        ("maximum", torch.tensor(-9.0), "act.maximum"),
        ("maximum", torch.tensor(1, dtype=torch.int64), "act.maximum"),
        ("other", torch.tensor(1), "act.other"),
    ],
)
def test_tensors_that_cannot_be_are_refused(path: Path, tensor: str, value: torch.Tensor, field: str) -> None:
    """Counts, keys and ranges have to fit together."""
    sealed = read_sealed(path)
    write_sealed(path, sealed.about, {**sealed.tensors, f"act.{tensor}": value})
    assert refused(path).field == field


@pytest.mark.parametrize(
    ("about", "text"),
    [
        ('{"kind":"model"}', "about something else"),
        ("no JSON", "a JSON description"),
        ('{"kind":"statistics","schema":9,"statistics":{}}', "newer version"),
        ('{"kind":"statistics","schema":1,"statistics":{"a":1}}', "settings of every statistic"),
        ('{"kind":"statistics","schema":1,"statistics":{}}', "listed only"),
        ('{"kind":"statistics","schema":1,"statistics":{},"origin":[]}', "texts by name"),
        ('{"kind":"statistics","schema":1,"statistics":{},"origin":{"calls":3}}', "texts by name"),
        ('{"kind":"statistics","schema":1,"statistics":{},"other":{}}', "about something else"),
    ],
)
def test_files_about_something_else_are_refused(path: Path, about: str, text: str) -> None:
    """A file of another kind or version says what it is."""
    write_sealed(path, about, {"a.b": torch.zeros(1)})
    assert text in str(refused(path))


def test_origin_is_kept_beside_the_statistics(tmp_path: Path) -> None:
    """A file may say where its statistics are from; one that does not has the bytes it always had."""
    save_statistics(tmp_path / "plain", SEEN)
    save_statistics(tmp_path / "same", SEEN, {})
    save_statistics(tmp_path / "told", SEEN, {"model": "0a", "calls": "3"})
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "same").read_bytes()
    assert read_statistics(tmp_path / "told").origin == {"model": "0a", "calls": "3"}
    assert load_statistics(tmp_path / "told") == SEEN


@pytest.mark.parametrize("name", ["a/b", "a\\b", "..", "a..b", "a\0", "e\u0301", "__metadata__", "a\n"])
def test_names_that_are_none_are_not_written(tmp_path: Path, name: str) -> None:
    """Names with slashes, dots in a row, control characters or loose accents."""
    with pytest.raises(UnsupportedError) as caught:
        write_sealed(tmp_path / "x", "{}", {name: torch.zeros(1)})
    assert (caught.value.module, caught.value.field) == (name, "name")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "tensor", [torch.zeros(2, device="meta"), torch.eye(2).to_sparse(), torch.zeros(1, dtype=torch.complex64)]
)
def test_tensors_without_plain_data_are_not_written(tmp_path: Path, tensor: torch.Tensor) -> None:
    """The error names the tensor."""
    with pytest.raises(UnsupportedError) as caught:
        write_sealed(tmp_path / "x", "{}", {"a": tensor})
    assert (caught.value.module, caught.value.field) == ("a", "tensor")


def test_tensors_of_any_layout_are_written(tmp_path: Path) -> None:
    """Transposed, 0-dimensional, empty, tied and requiring a gradient."""
    x = torch.arange(6.0).view(2, 3)
    tensors = {"t": x.T, "0": torch.tensor(1.5), "e": torch.empty(0, 3), "x": x, "same": x}
    tensors["leaf"] = torch.ones(1, requires_grad=True)
    write_sealed(tmp_path / "x", "{}", tensors)
    again = read_sealed(tmp_path / "x").tensors
    assert sorted(again) == sorted(tensors)
    assert all(torch.equal(again[name], tensor.detach()) for name, tensor in tensors.items())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Whatever fails, the old file is whole and nothing else is left."""
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError(args)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError):  # noqa: PT011  # the one raised above
        save_statistics(path, {})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_what_killed_writers_left_is_removed(path: Path) -> None:
    """The next write cleans up."""
    orphan = path.with_name(f".{path.name}.0123456789abcdef.tmp")
    orphan.write_bytes(b"half")
    save_statistics(path, SEEN)
    assert list(path.parent.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(path: Path) -> None:
    """SIGKILL in the middle of writing, at several moments."""
    script = SAVE.replace("save_statistics(sys", "print(flush=True)\nwhile True: save_statistics(sys")
    before = path.read_bytes()
    for delay in (0.0, 0.003, 0.01):
        with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.kill()
        assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) <= 2


@pytest.mark.skipif(os.name != "posix", reason="modes are those of Unix")
def test_files_have_the_mode_of_the_umask(path: Path) -> None:
    """Like any file the user makes."""
    mask = os.umask(0o027)
    try:
        save_statistics(path, SEEN)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640


def test_folders_and_missing_files_are_no_statistics(tmp_path: Path) -> None:
    """The system's own errors say so."""
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(OSError, match=str(tmp_path)):
            load_statistics(path)


def test_other_statistics_are_not_written(tmp_path: Path) -> None:
    """A kind that files do not hold is refused by name."""
    with pytest.raises(UnsupportedError) as caught:
        save_statistics(tmp_path / "x", {"a": _Foreign()})
    assert (caught.value.module, caught.value.field) == ("a", "statistics")


class _Foreign(Statistic):
    """A statistic of another library."""

    is_empty = True

    def observe(self, x: torch.Tensor) -> _Foreign:
        """See nothing."""
        del x
        return self

    def merge(self, other: Statistic) -> _Foreign:
        """See nothing twice."""
        del other
        return self


def test_gram_matrices_of_two_machines_add_up(tmp_path: Path) -> None:
    """A calibration can be spread over machines and put together again."""
    x = torch.randint(-8, 8, (1300, 6), generator=torch.Generator().manual_seed(0)).float()
    for index, part in enumerate((x[:700], x[700:])):
        save_statistics(tmp_path / str(index), {"q_proj": GramStatistic(columns=6).observe(part)})
    one, other = (load_statistics(tmp_path / str(index))["q_proj"] for index in range(2))
    assert isinstance(one, GramStatistic)
    assert isinstance(other, GramStatistic)
    wide = x.to(torch.float64)
    assert torch.equal(one.merge(other).matrix(), wide.T @ wide)
