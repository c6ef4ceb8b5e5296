"""Corpora: documents from any file, tokens in a cache keyed by content, sequences that cross no document."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bertcli.data import corpus_tokens as corpus_module
from bertcli.data.corpus_reading import SEPARATORS, read_documents, split_stream
from bertcli.data.corpus_sequences import (
    IN_ORDER,
    cut_documents,
    divide_documents,
    documents_of_epoch,
    in_blocks,
    pair_documents,
)
from bertcli.data.corpus_tokens import BEGINS_SENTENCE, BEGINS_WORD, Corpus, corpus_key, open_corpus
from bertcli.errors import DataError
from bertcli.models.from_pretrained import load_tokenizer
from bertcli.recipe.pretrain_schema import CorpusSection, Source

TABLE = pyarrow.BufferOutputStream()
pyarrow.parquet.write_table(pyarrow.table({"text": [7, 8]}), TABLE)
PARQUET = TABLE.getvalue().to_pybytes()
TEXT = "a fine film .\nthe soup was awful\n\n  \nbad train\n\n\na dull day\nlovely\n"


def documents(name: str, content: bytes, **options: Any) -> list[str]:
    Path(name).write_bytes(content)
    return list(read_documents(Source(files=(str(Path(name).resolve()),), **options), None))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path / "cache"))


def section_of(text: str = TEXT, name: str = "corpus.txt", **options: Any) -> CorpusSection:
    Path(name).write_text(text, "utf-8")
    return CorpusSection(sources=(Source(files=(str(Path(name).resolve()),), **options),))


def test_memory_is_given_back_after_each_part(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[int] = []
    monkeypatch.setattr(corpus_module, "CHARACTERS_AT_ONCE", 12)
    monkeypatch.setattr(corpus_module, "give_back_memory", lambda: given_back.append(1))
    open_corpus(section_of(), load_tokenizer(str(encoder), None), None)
    assert len(given_back) == 2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("blocks", ["a fine film .\nthe soup was awful", "bad train", "a dull day\nlovely"]),
        ("lines", ["a fine film .", "the soup was awful", "bad train", "a dull day", "lovely"]),
        ("files", [TEXT.strip()]),
    ],
)
def test_a_text_file_is_cut_as_asked(kind: str, expected: list[str]) -> None:
    assert [text.strip() for text in documents("a.txt", TEXT.encode(), documents=kind)] == expected
    crlf = TEXT.replace("\n", "\r\n").encode()
    assert [text.replace("\r", "").strip() for text in documents("b.txt", crlf, documents=kind)] == expected


def test_compressed_files_json_lines_and_parquet_are_read() -> None:
    blocks = [text.strip() for text in documents("a.txt", TEXT.encode())]
    assert [text.strip() for text in documents("a.txt.gz", gzip.compress(TEXT.encode()))] == blocks
    zstd = pyarrow.compress(TEXT.encode(), codec="zstd", asbytes=True)
    assert [text.strip() for text in documents("a.txt.zst", zstd)] == blocks
    lines = "".join(json.dumps({"body": text}) + "\n" for text in blocks).encode()
    assert documents("a.jsonl", lines, column="body") == blocks
    assert documents("a.jsonl.gz", gzip.compress(lines), column="body") == blocks
    assert documents("a.jsonl.bz2", bz2.compress(lines), column="body") == blocks
    pyarrow.parquet.write_table(pyarrow.table({"text": [*blocks, "", None]}), "a.parquet")
    assert list(read_documents(Source(files=("a.parquet",)), None)) == blocks


def test_globs_take_files_in_order_and_once() -> None:
    for name in ("b.txt", "a.txt"):
        Path(name).write_text(name)
    assert list(read_documents(Source(files=("*.txt", "a.txt")), None)) == ["a.txt", "b.txt"]


def test_a_stream_is_cut_alike_however_it_comes_in_parts() -> None:
    whole = [text for text in split_stream([TEXT], SEPARATORS["blocks"]) if text.strip()]
    for size in (1, 2, 5):
        parts = [TEXT[at : at + size] for at in range(0, len(TEXT), size)]
        cut = [text for text in split_stream(parts, SEPARATORS["blocks"]) if text.strip()]
        assert [text.strip() for text in cut] == [text.strip() for text in whole]


def test_an_endless_line_is_cut_at_spaces_and_nothing_is_lost() -> None:
    line = "word " * 1000
    pieces = list(split_stream([line[at : at + 97] for at in range(0, len(line), 97)], SEPARATORS["blocks"], 200))
    assert "".join(pieces) == line
    assert max(map(len, pieces)) <= 300
    assert all(piece.strip().split() == ["word"] * (len(piece.split())) for piece in pieces)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"na\xefve\n", "not UTF-8"),
        ("a.txt.gz", gzip.compress(b"text " * 9999, mtime=0)[:-20], "damaged or cut short"),
        ("a.jsonl", b'{"text": 1}\n', r"a\.jsonl:1: found \['text'\]"),
        ("a.jsonl", b"{text\n", "not JSON"),
        ("a.parquet", b"PAR1", "cannot read"),
        ("numbers.parquet", PARQUET, r"numbers\.parquet: document 1 has 7 in 'text', expected text"),
        ("a.json", b"{}", r"found .*a\.json, expected text"),
        ("a.csv.gz", gzip.compress(b"text", mtime=0), r"found .*a\.csv\.gz, expected text"),
    ],
)
def test_a_bad_file_is_named(name: str, content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        documents(name, content)
    with pytest.raises(DataError, match="found no file"):
        list(read_documents(Source(files=("gone*.txt",)), None))


def test_the_cache_holds_each_documents_tokens_words_and_sentences(encoder: Path) -> None:
    tokenizer = load_tokenizer(str(encoder), None)
    corpus = open_corpus(section_of("a fine film. the soup\nwas unaffable\n\nbad train\n"), tokenizer, None)
    assert len(corpus.documents) == 3
    first = slice(*corpus.documents[:2])
    output = tokenizer("a fine film. the soup\nwas unaffable", add_special_tokens=False)
    assert corpus.tokens[first].tolist() == output["input_ids"]
    words = output.word_ids(0)
    begins = [at == 0 or words[at] != words[at - 1] for at in range(len(words))]
    assert ((corpus.flags[first] & BEGINS_WORD) > 0).tolist() == begins
    sentences = np.flatnonzero(corpus.flags[first] & BEGINS_SENTENCE).tolist()
    assert sentences == [0, output.char_to_token(13), output.char_to_token(22)]


def test_a_special_token_that_somebody_wrote_is_text(encoder: Path) -> None:
    tokenizer = load_tokenizer(str(encoder), None)
    corpus = open_corpus(section_of("a fine [MASK] film [SEP]\n\nbad train [CLS]\n"), tokenizer, None)
    assert not set(corpus.tokens.tolist()) & {tokenizer.mask_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id}
    assert tokenizer("[MASK]", add_special_tokens=False)["input_ids"] == [tokenizer.mask_token_id]


def test_the_cache_is_used_again_until_content_or_tokenizer_change(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, calls = load_tokenizer(str(encoder), None), []
    section = section_of()
    open_corpus(section, tokenizer, None, calls.append)
    open_corpus(section, tokenizer, None, calls.append)
    assert len(calls) == 1
    before = corpus_key(section, tokenizer, None)
    assert corpus_key(section_of(TEXT + "more"), tokenizer, None) != before
    assert corpus_key(section_of(), tokenizer, None) == before
    sample = CorpusSection.model_validate({"sources": [{"dataset": "sample"}]})
    shipped = corpus_key(sample, tokenizer, None)
    monkeypatch.setattr("bertcli.data.sample.sample_documents", lambda number: iter(["another version's document"]))
    assert corpus_key(sample, tokenizer, None) != shipped
    tokenizer.add_tokens(["harbourmaster"])
    assert corpus_key(section_of(), tokenizer, None) != before


def test_the_name_tells_how_a_compressed_file_is_read(encoder: Path) -> None:
    tokenizer, content = load_tokenizer(str(encoder), None), gzip.compress(b'{"text": "a film"}\n' * 3, mtime=0)
    keys = set()
    for name in ("k.txt.gz", "k.jsonl.gz"):
        Path(name).write_bytes(content)
        section = CorpusSection.model_validate({"sources": [{"files": name}]})
        keys.add(corpus_key(section, tokenizer, None))
    assert len(keys) == 2


def test_an_interrupted_making_leaves_nothing_behind(encoder: Path, tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_corpus(section_of(), load_tokenizer(str(encoder), None), None, stop)
    assert list((tmp_path / "cache" / "corpora").iterdir()) == []


@pytest.mark.parametrize("text", ["", "\n \n\n", "one document only"])
def test_a_corpus_without_two_documents_is_refused(encoder: Path, text: str) -> None:
    with pytest.raises(DataError, match="expected two or more"):
        open_corpus(section_of(text), load_tokenizer(str(encoder), None), None)


def made_up(num_documents: int = 300) -> Corpus:
    """Documents of 1 to 12 sentences; each token tells its document."""
    random = np.random.default_rng(0)
    tokens, flags, ends = [], [], [0]
    for document in range(num_documents):
        for _ in range(random.integers(1, 13)):
            length = int(random.integers(2, 20))
            tokens += [document] * length
            flags += [BEGINS_SENTENCE | BEGINS_WORD] + [BEGINS_WORD] * (length - 1)
        ends.append(len(tokens))
    return Corpus(
        np.array(tokens, np.uint16), np.array(flags, np.uint8), np.array(ends), np.array([0, 100, num_documents])
    )


def test_pieces_cover_every_document_and_cross_none() -> None:
    corpus = made_up()
    chosen = np.arange(0, 300, 3)
    ranges = cut_documents(corpus, chosen, 17)
    assert ranges.lengths.max() <= 17
    seen = np.concatenate([np.arange(start, end) for start, end in ranges.first])
    expected = np.concatenate([np.arange(*corpus.documents[at : at + 2]) for at in chosen])
    assert seen.tolist() == expected.tolist()
    assert all(len(set(corpus.tokens[start:end].tolist())) == 1 for start, end in ranges.first)


def test_held_out_documents_are_the_same_every_time_and_never_learned_from() -> None:
    train, held_out = divide_documents(made_up(), 0.1)
    assert (len(train), len(held_out)) == (270, 30)
    assert not set(train) & set(held_out)
    again = divide_documents(made_up(), 0.1)
    assert again[1].tolist() == held_out.tolist()


def test_as_many_documents_are_held_out_as_are_needed_or_it_is_refused() -> None:
    assert [len(part) for part in divide_documents(made_up(40), 0.001, 2)] == [38, 2]
    assert [len(part) for part in divide_documents(made_up(4), 0.9, 2)] == [2, 2]
    with pytest.raises(DataError, match="found 3 documents, expected 4 or more"):
        divide_documents(made_up(3), 0.5, 2)


def test_blocks_share_the_documents_out_by_chance() -> None:
    corpus = made_up()
    chosen = np.arange(0, 300, 2)
    num_tokens = int(corpus.lengths_of(chosen).sum())
    (whole,) = in_blocks(corpus, chosen, num_tokens, np.random.default_rng(0))
    assert whole.tolist() == chosen.tolist()
    blocks = list(in_blocks(corpus, chosen, num_tokens // 4, np.random.default_rng(0)))
    assert len(blocks) == 4
    assert sorted(np.concatenate(blocks).tolist()) == chosen.tolist()
    assert max(int(corpus.lengths_of(block).sum()) for block in blocks) < num_tokens // 2
    others = in_blocks(corpus, chosen, num_tokens // 4, np.random.default_rng(1))
    assert [block.tolist() for block in blocks] != [block.tolist() for block in others]


def test_weights_say_how_often_a_source_is_passed_over() -> None:
    corpus = made_up()
    sources = (Source(files=("a",), weight=2.5), Source(files=("b",), weight=0.25))
    taken = documents_of_epoch(corpus, np.arange(300), sources, np.random.default_rng(0))
    counts = np.bincount(taken, minlength=300)
    assert counts[:100].sum() == 250
    assert set(counts[:100]) == {2, 3}
    assert counts[100:].sum() == 50


@pytest.mark.parametrize("room", [24, 61])
def test_next_sentence_pairs_are_half_and_half_and_negatives_come_from_elsewhere(room: int) -> None:
    corpus = made_up()
    ranges = pair_documents(corpus, np.arange(300), room, "next_sentence", 0.1, np.random.default_rng(1))
    assert ranges.pair_labels is not None
    assert ranges.lengths.max() <= room
    assert np.diff(ranges.first).min() > 0
    assert np.diff(ranges.second).min() > 0
    in_order = ranges.pair_labels == IN_ORDER
    assert in_order.mean() == pytest.approx(0.5, abs=0.01)
    documents = corpus.tokens[ranges.first[:, 0]], corpus.tokens[ranges.second[:, 0]]
    assert (documents[0][in_order] == documents[1][in_order]).all()
    assert (documents[0][~in_order] != documents[1][~in_order]).all()
    for (_, end), (start, _) in zip(ranges.first[in_order], ranges.second[in_order], strict=True):
        assert start >= end  # what was cut off may stand between


def test_the_cut_does_not_tell_whether_the_second_text_follows() -> None:
    corpus = made_up(2000)
    ranges = pair_documents(corpus, np.arange(2000), 61, "next_sentence", 0.1, np.random.default_rng(1))
    bounds = np.union1d(np.flatnonzero(corpus.flags & BEGINS_SENTENCE), corpus.documents)
    whole = np.isin(np.stack((ranges.first, ranges.second), axis=1).reshape(-1, 4), bounds) @ (1, 2, 4, 8)
    assert ranges.pair_labels is not None
    right = sum(np.bincount(ranges.pair_labels[whole == kind]).max() for kind in np.unique(whole))
    assert right / len(ranges) < 0.58  # 0.7 if texts from elsewhere are cut to a length of their own


def test_sentence_order_swaps_half_of_the_neighbours() -> None:
    corpus = made_up()
    ranges = pair_documents(corpus, np.arange(300), 61, "sentence_order", 0.0, np.random.default_rng(1))
    assert ranges.pair_labels is not None
    in_order = ranges.pair_labels == IN_ORDER
    assert in_order.mean() == pytest.approx(0.5, abs=0.01)
    assert (corpus.tokens[ranges.first[:, 0]] == corpus.tokens[ranges.second[:, 0]]).all()
    assert (ranges.first[in_order, 0] < ranges.second[in_order, 0]).all()
    assert (ranges.first[~in_order, 0] > ranges.second[~in_order, 0]).all()


def test_one_document_has_no_other_to_draw_from() -> None:
    with pytest.raises(DataError, match="two or more documents"):
        pair_documents(made_up(), np.array([5, 5]), 61, "next_sentence", 0.1, np.random.default_rng(1))
