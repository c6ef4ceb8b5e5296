"""What the cache holds is used as it was made, or made anew with a warning: never by half, never damaged."""

from __future__ import annotations

import os
from dataclasses import astuple
from pathlib import Path
from threading import Barrier, Thread

import pytest

from bertcli.data.cache import made_once
from bertcli.data.corpus_tokens import open_corpus
from bertcli.models.from_pretrained import load_tokenizer
from bertcli.recipe.pretrain_schema import CorpusSection, Source

from ..conftest import HARMS

MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def _check_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertcli.data.cache.CHECKED_MEGABYTES", 1)


def make(folder: Path) -> None:
    (folder / "about.json").write_text('{"number": 7}')
    with (folder / "numbers.bin").open("wb") as file:
        file.write(b"head")
        file.truncate(MEGABYTE + 9)


@pytest.mark.parametrize("name", ["about.json", "numbers.bin", "manifest.json"])
@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_entry_is_told_set_aside_and_made_anew(tmp_path: Path, name: str, harm: str) -> None:
    entry = tmp_path / "cache" / "entry"
    assert made_once(entry, make, pytest.fail) == entry
    assert made_once(entry, lambda _: pytest.fail("made again"), pytest.fail) == entry
    HARMS[harm](entry / name)
    told: list[str] = []
    made_once(entry, make, told.append)
    assert [str(entry) in words and name in words for words in told] == [True]
    made_once(entry, lambda _: pytest.fail("made again"), pytest.fail)
    assert (entry / "about.json").read_text() == '{"number": 7}'
    assert sorted(path.name.partition(".")[2].partition(".")[0] for path in entry.parent.iterdir()) == ["", "damaged"]


def test_what_a_killed_process_left_goes_a_day_later(tmp_path: Path) -> None:
    entry = tmp_path / "cache" / "entry"
    old, new = (entry.with_name(f".entry.{name}") for name in ("old", "new"))
    for left in (old, new):
        left.mkdir(parents=True)
        (left / "tokens.bin").touch()
    for path in (old / "tokens.bin", old, new):  # in the last one somebody writes
        os.utime(path, (0, 0))
    made_once(entry, make, pytest.fail)
    assert {path.name for path in entry.parent.iterdir()} == {"entry", ".entry.new"}


@pytest.mark.parametrize("begin", ["nothing", "a damaged entry"])
def test_two_that_make_one_entry_at_once_both_end_well(tmp_path: Path, begin: str) -> None:
    entry, both, ends = tmp_path / "cache" / "entry", Barrier(2, timeout=20), list[bytes]()
    if begin == "a damaged entry":
        made_once(entry, make, pytest.fail)
        HARMS["missing"](entry / "about.json")

    def make_slowly(folder: Path) -> None:
        both.wait()  # neither has found it whole
        make(folder)
        both.wait()

    def open_entry() -> None:
        ends.append((made_once(entry, make_slowly, lambda words: None) / "about.json").read_bytes())

    threads = [Thread(target=open_entry) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [b'{"number": 7}'] * 2
    made_once(entry, lambda _: pytest.fail("made again"), pytest.fail)
    assert not [path for path in entry.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["tokens.bin", "flags.bin", "documents.npy", "corpus.json"])
@pytest.mark.parametrize("harm", HARMS)
def test_damaged_tokens_of_a_corpus_are_made_anew(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, harm: str
) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path / "cache"))
    Path("corpus.txt").write_text("a fine film\n\nbad train\n")
    section = CorpusSection(sources=(Source(files=(str(tmp_path / "corpus.txt"),)),))
    tokenizer = load_tokenizer(str(encoder), None)
    before = [part.copy() for part in astuple(open_corpus(section, tokenizer, None))]
    (entry,) = (tmp_path / "cache" / "corpora").iterdir()
    HARMS[harm](entry / name)
    with pytest.warns(UserWarning, match=f"{entry}.*damaged.*{name}"):
        after = astuple(open_corpus(section, tokenizer, None))
    assert [part.tolist() for part in after] == [part.tolist() for part in before]
