"""Cache entries are complete and intact, or rebuilt with a warning."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest

from bertcli.cache import create_atomically, get_or_create
from bertcli.data.corpus_tokens import load_corpus
from bertcli.files import file_lock
from bertcli.models.from_pretrained import ModelSource
from bertcli.recipe.pretrain_schema import CorpusSection, Source

from .conftest import CORRUPTIONS

MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def _verify_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertcli.cache.VERIFIED_MEGABYTES", 1)


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
