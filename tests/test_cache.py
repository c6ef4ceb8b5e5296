"""Cache entries are complete and intact, or rebuilt with a warning."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from threading import Barrier, Event
from typing import BinaryIO

import numpy as np
import pytest

from bertcli.cache import _in_use, _remove_entry, create_atomically, get_or_create
from bertcli.data.corpus_tokens import load_corpus
from bertcli.errors import UsageError
from bertcli.files import file_lock
from bertcli.models.from_pretrained import ModelSource
from bertcli.recipe.pretrain_schema import CorpusSection, Source

from .conftest import CORRUPTIONS

MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def _verify_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertcli.files.MIN_SAMPLED_BYTES", MEGABYTE)


def create(folder: Path) -> None:
    (folder / "about.json").write_text('{"number": 7}')
    with (folder / "numbers.bin").open("wb") as file:
        file.write(b"head")
        file.truncate(MEGABYTE + 9)


@pytest.mark.parametrize("name", ["about.json", "numbers.bin", "manifest.json"])
@pytest.mark.parametrize("harm", CORRUPTIONS)
def test_cache_reports_and_rebuilds_a_damaged_entry(tmp_path: Path, name: str, harm: str) -> None:
    entry = tmp_path / "cache" / "entry"
    assert get_or_create(entry, create, pytest.fail) == entry
    assert get_or_create(entry, lambda _: pytest.fail("created again"), pytest.fail) == entry
    CORRUPTIONS[harm](entry / name)
    warnings: list[str] = []
    get_or_create(entry, create, warnings.append)
    assert [str(entry) in message and name in message for message in warnings] == [True]
    get_or_create(entry, lambda _: pytest.fail("created again"), pytest.fail)
    assert (entry / "about.json").read_text() == '{"number": 7}'
    assert sorted(path.name.partition(".")[2].partition(".")[0] for path in entry.parent.iterdir()) == ["", "damaged"]


@pytest.mark.parametrize("position", [0.0, 0.3, 0.7, 1.0])
def test_cache_notices_damage_anywhere_in_a_large_file(tmp_path: Path, position: float) -> None:
    """A part of a file that a crash left empty is far larger than the distance between two parts of the sample."""
    entry, size = tmp_path / "cache" / "entry", 40 * MEGABYTE

    def create_large(folder: Path) -> None:
        (folder / "states.npy").write_bytes(b"state" * (size // 5))

    get_or_create(entry, create_large, pytest.fail)
    get_or_create(entry, pytest.fail, pytest.fail)
    with (entry / "states.npy").open("r+b") as file:
        file.seek(int(position * (size - 3 * MEGABYTE)))
        file.write(bytes(3 * MEGABYTE))
    warnings: list[str] = []
    get_or_create(entry, create_large, warnings.append)
    assert "the hash of states.npy does not match" in warnings[0]


def test_cache_names_the_entry_if_the_disk_is_full(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # without a file name, as from `file.write`

    with pytest.raises(OSError, match=r"No space left on device: '.*entry'"):
        get_or_create(tmp_path / "entry", fail, pytest.fail)
    assert not [*tmp_path.iterdir()]


def test_cache_removes_a_killed_process_s_temporary_folder_after_a_day(tmp_path: Path) -> None:
    entry = tmp_path / "cache" / "entry"
    old, new = (entry.with_name(f".entry.{name}") for name in ("old", "new"))
    for tmp in (old, new):
        tmp.mkdir(parents=True)
        (tmp / "tokens.bin").touch()
    for path in (old / "tokens.bin", old, new):  # `new` was just written to
        os.utime(path, (0, 0))
    get_or_create(entry, create, pytest.fail)
    assert {path.name for path in entry.parent.iterdir()} == {"entry", ".entry.new"}


def in_two_threads(call: Callable[[], object]) -> list[object]:
    with ThreadPoolExecutor(2) as pool:
        return [future.result(timeout=60) for future in [pool.submit(call) for _ in range(2)]]


@pytest.mark.parametrize("initial", ["nothing", "a damaged entry"])
def test_cache_entry_created_by_two_processes_at_once(tmp_path: Path, initial: str) -> None:
    entry, second_waits, created = tmp_path / "cache" / "entry", Event(), list[Path]()
    if initial == "a damaged entry":
        get_or_create(entry, create, pytest.fail)
        CORRUPTIONS["missing"](entry / "about.json")

    def create_slowly(folder: Path) -> None:
        created.append(folder)
        assert second_waits.wait(timeout=20)  # it has found the entry missing or damaged, too
        create(folder)

    def warn(message: str) -> None:
        if message.startswith("waiting for "):  # for "another process" if its number is not written yet
            second_waits.set()

    contents = in_two_threads(lambda: (get_or_create(entry, create_slowly, warn) / "about.json").read_bytes())
    assert contents == [b'{"number": 7}'] * 2
    assert len(created) == 1
    get_or_create(entry, lambda _: pytest.fail("created again"), pytest.fail)
    assert len([path for path in entry.parent.iterdir() if path != entry]) == (initial == "a damaged entry")


@pytest.mark.parametrize("initial", ["nothing", "a damaged entry"])
def test_cache_keeps_the_first_of_two_entries_created_at_once(tmp_path: Path, initial: str) -> None:
    entry, both_create = tmp_path / "cache" / "entry", Barrier(2, timeout=20)
    if initial == "a damaged entry":
        get_or_create(entry, create, pytest.fail)
        CORRUPTIONS["missing"](entry / "about.json")

    def create_together(folder: Path) -> None:
        both_create.wait()
        create(folder)
        both_create.wait()

    def create_entry() -> int:
        create_atomically(entry, create_together)
        return (entry / "about.json").stat().st_ino

    assert len({*in_two_threads(create_entry)}) == 1
    assert len([path for path in entry.parent.iterdir() if path != entry]) == (initial == "a damaged entry")


def test_valid_cache_entry_is_read_without_its_lock(tmp_path: Path) -> None:
    entry = tmp_path / "cache" / "entry"
    get_or_create(entry, create, pytest.fail)
    with file_lock(entry.with_name(".entry.lock"), pytest.fail):
        get_or_create(entry, pytest.fail, pytest.fail)


def make_entries(cache: Path, *names: str) -> list[Path]:
    """Create entries in another process, which ends, and then uses none of them; the first was used first."""
    script = (
        "import sys; from pathlib import Path; from bertcli.cache import get_or_create\n"
        "for name in sys.argv[2:]:\n"
        "    get_or_create(Path(name), lambda tmp: (tmp / 'a').write_bytes(bytes(300_000)), sys.exit)\n"
    )
    entries = [cache / f"kind-{index % 2}" / name for index, name in enumerate(names)]
    subprocess.run([sys.executable, "-c", script, "-", *map(str, entries)], check=True)
    for number, entry in enumerate(entries):
        os.utime(entry / "manifest.json", (number + 1, number + 1))
    return entries


A, B, C, D = (letter * 32 for letter in "abcd")


@pytest.mark.parametrize(("max_gb", "removed"), [("0.00125", 0), ("0.00095", 1), ("0.0005", 3), ("0", 3), ("inf", 0)])
def test_cache_removes_the_least_recently_used_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_gb: str, removed: int
) -> None:
    entries = make_entries(tmp_path, A, B, C)
    get_or_create(entries[0], pytest.fail, pytest.fail)  # the least recently used one is now B
    _in_use.pop(entries[0]).close()
    monkeypatch.setenv("BERTCLI_CACHE_MAX_GB", max_gb)
    get_or_create(tmp_path / "kind-0" / D, lambda tmp: (tmp / "a").write_bytes(bytes(300_000)), pytest.fail)
    order = [entries[1], entries[2], entries[0]]
    assert [entry.exists() for entry in order] == [index >= removed for index in range(3)]
    assert {path.name for path in tmp_path.glob("*/*")} == {D, *(entry.name for entry in order[removed:])}


def test_cache_keeps_entries_in_use_and_what_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used, unused = make_entries(tmp_path, A, B)
    foreign = [tmp_path / "kind-0" / name for name in ("papers", "e" * 32, ".lock")]
    for folder in foreign:
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
    damaged, leftover = tmp_path / "kind-0" / f"{C}.damaged.01234567", tmp_path / "kind-1" / f".{C}.01234567"
    for folder in damaged, leftover:
        folder.mkdir()
        os.utime(folder, (0, 0))
    monkeypatch.setenv("BERTCLI_CACHE_MAX_GB", "0")
    script = (
        "import sys; from pathlib import Path; from bertcli.cache import get_or_create\n"
        "get_or_create(Path(sys.argv[1]), sys.exit, sys.exit); print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(used)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        get_or_create(tmp_path / "kind-0" / D, create, pytest.fail)
        assert used.is_dir()
        process.communicate()
    assert not any(path.exists() for path in (unused, damaged, leftover))
    get_or_create(tmp_path / "kind-1" / D, create, pytest.fail)
    assert not used.exists()
    assert all((folder / "mine.txt").is_file() for folder in foreign)
    assert (tmp_path / "kind-0" / D).is_dir()  # this process uses it


def before_next_lock(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have another process act between opening and locking the next manifest."""
    flock = fcntl.flock

    def act_and_lock(file: BinaryIO, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        act()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", act_and_lock)


def test_cache_entry_removed_after_it_was_found_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes the entry after this one opened its manifest, but before it locked it."""
    (entry,) = make_entries(tmp_path, A)
    before_next_lock(monkeypatch, lambda: _remove_entry(entry))
    get_or_create(entry, create, pytest.fail)
    assert (entry / "about.json").is_file()


def test_cache_entry_created_again_while_it_is_being_removed_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third process creates the entry again after this one opened the manifest that another process removed."""
    (entry,) = make_entries(tmp_path, A)

    def create_again() -> None:
        shutil.rmtree(entry)
        make_entries(tmp_path, A)

    before_next_lock(monkeypatch, create_again)
    with pytest.raises(BlockingIOError):
        _remove_entry(entry)
    assert (entry / "a").is_file()


@pytest.mark.parametrize("value", ["many", "-1", "nan"])
def test_cache_rejects_an_invalid_maximum_size_before_it_creates_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("BERTCLI_CACHE_MAX_GB", value)
    with pytest.raises(UsageError, match=f"BERTCLI_CACHE_MAX_GB='{value}', expected a number of gigabytes"):
        get_or_create(tmp_path / "cache" / A, pytest.fail, pytest.fail)


@pytest.mark.parametrize("name", ["tokens.bin", "flags.bin", "documents.npy", "corpus.json"])
@pytest.mark.parametrize("harm", CORRUPTIONS)
def test_cache_rebuilds_a_damaged_corpus(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, harm: str
) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path / "cache"))
    Path("corpus.txt").write_text("a fine film\n\nbad train\n")
    section = CorpusSection(sources=(Source(files=(str(tmp_path / "corpus.txt"),)),))
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    before = [np.array(part) for part in astuple(load_corpus(section, tokenizer, None))]
    (entry,) = (tmp_path / "cache" / "corpora").iterdir()
    CORRUPTIONS[harm](entry / name)
    with pytest.warns(UserWarning, match=f"{entry}.*damaged.*{name}"):
        after = astuple(load_corpus(section, tokenizer, None))
    assert [np.array(part).tolist() for part in after] == [part.tolist() for part in before]
