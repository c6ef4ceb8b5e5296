"""Corpora: documents from any file, a token cache keyed by content, sequences within documents."""

from __future__ import annotations

import bz2
import gzip
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bertcli.data import corpus_reading
from bertcli.data import corpus_tokens as corpus_module
from bertcli.data.corpus_reading import SEPARATORS, read_documents, single_file_layout, split_stream
from bertcli.data.corpus_sequences import (
    IS_NEXT,
    build_sentence_pairs,
    chunk_documents,
    sample_epoch_documents,
    split_into_shards,
    split_train_held_out,
)
from bertcli.data.corpus_tokens import SENTENCE_START, WORD_START, Corpus, corpus_key, load_corpus
from bertcli.data.masking import sample_mask
from bertcli.errors import DataError
from bertcli.models.from_pretrained import ModelSource
from bertcli.models.tokenizer_training import train_tokenizer
from bertcli.recipe.pretrain_schema import CorpusSection, Source

TABLE = pyarrow.BufferOutputStream()
pyarrow.parquet.write_table(pyarrow.table({"text": [7, 8]}), TABLE)
PARQUET = TABLE.getvalue().to_pybytes()
TEXT = "a fine film .\nthe soup was awful\n\n  \nbad train\n\n\na dull day\nlovely\n"


def documents(name: str, content: bytes, **options: Any) -> list[str]:
    Path(name).write_bytes(content)
    return list(read_documents(Source(files=(str(Path(name).resolve()),), **options), None))


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path / "cache"))


def section_of(text: str = TEXT, name: str = "corpus.txt", **options: Any) -> CorpusSection:
    Path(name).write_text(text, "utf-8")
    return CorpusSection(sources=(Source(files=(str(Path(name).resolve()),), **options),))


def test_tokenizing_trims_memory_after_each_chunk(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr(corpus_module, "CHUNK_CHARACTERS", 12)
    monkeypatch.setattr(corpus_module, "trim_memory", lambda: trims.append(1))
    load_corpus(section_of(), ModelSource(str(encoder)).load_tokenizer(), None)
    assert len(trims) == 2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("blocks", ["a fine film .\nthe soup was awful", "bad train", "a dull day\nlovely"]),
        ("lines", ["a fine film .", "the soup was awful", "bad train", "a dull day", "lovely"]),
        ("files", [TEXT.strip()]),
    ],
)
def test_text_files_split_into_blocks_lines_or_files(kind: str, expected: list[str]) -> None:
    assert [text.strip() for text in documents("a.txt", TEXT.encode(), documents=kind)] == expected
    crlf = TEXT.replace("\n", "\r\n").encode()
    assert [text.replace("\r", "").strip() for text in documents("b.txt", crlf, documents=kind)] == expected


def test_documents_from_compressed_jsonl_and_parquet_files() -> None:
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


def test_globs_match_files_is_next_and_once() -> None:
    for name in ("b.txt", "a.txt"):
        Path(name).write_text(name)
    assert list(read_documents(Source(files=("*.txt", "a.txt")), None)) == ["a.txt", "b.txt"]


def test_split_stream_does_not_depend_on_how_the_text_is_divided() -> None:
    expected = [text for text in split_stream([TEXT], SEPARATORS["blocks"]) if text.strip()]
    for size in (1, 2, 5):
        parts = [TEXT[at : at + size] for at in range(0, len(TEXT), size)]
        actual = [text for text in split_stream(parts, SEPARATORS["blocks"]) if text.strip()]
        assert [text.strip() for text in actual] == [text.strip() for text in expected]


def test_split_stream_splits_long_lines_at_spaces() -> None:
    line = "word " * 1000
    pieces = list(split_stream([line[at : at + 97] for at in range(0, len(line), 97)], SEPARATORS["blocks"], 200))
    assert "".join(pieces) == line
    assert max(map(len, pieces)) <= 300
    assert all(piece.strip().split() == ["word"] * (len(piece.split())) for piece in pieces)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"na\xefve\n", "not UTF-8"),
        ("a.txt.gz", gzip.compress(b"text " * 9999, mtime=0)[:-20], "damaged or truncated"),
        ("a.jsonl", b'{"text": 1}\n', "a.jsonl:1: found 1, expected text under 'text'"),
        ("a.jsonl", b'{"text": null}\n', "a.jsonl:1: found null, expected text under 'text'"),
        ("a.jsonl", b'{"text": ["a"]}\n', r"a\.jsonl:1: found \[\"a\"\], expected text under 'text'"),
        ("a.jsonl", b'{"body": "a"}\n', r"a\.jsonl:1: found the keys \['body'\], expected text under 'text'"),
        ("a.jsonl", b"{text\n", "not JSON"),
        ("a.parquet", b"PAR1", "cannot read"),
        ("numbers.parquet", PARQUET, r"numbers\.parquet: document 1 has 7 in 'text', expected text"),
        ("a.json", b"{}", r"found .*a\.json, expected text"),
        ("a.csv.gz", gzip.compress(b"text", mtime=0), r"found .*a\.csv\.gz, expected text"),
    ],
)
def test_unreadable_files_are_named(name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        documents(name, content)
    with pytest.raises(DataError, match="found no file"):
        list(read_documents(Source(files=("gone*.txt",)), None))


def test_corpus_marks_documents_words_and_sentences(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    corpus = load_corpus(section_of("a fine film. the soup\nwas unaffable\n\nbad train\n"), tokenizer, None)
    assert len(corpus.document_offsets) == 3
    first = slice(*corpus.document_offsets[:2])
    output = tokenizer("a fine film. the soup\nwas unaffable", add_special_tokens=False)
    assert corpus.tokens[first].tolist() == output["input_ids"]
    words = output.word_ids(0)
    starts = [index == 0 or words[index] != words[index - 1] for index in range(len(words))]
    assert ((corpus.flags[first] & WORD_START) > 0).tolist() == starts
    sentences = np.flatnonzero(corpus.flags[first] & SENTENCE_START).tolist()
    assert sentences == [0, output.char_to_token(13), output.char_to_token(22)]


UNSPACED_TEXTS = {
    "chinese": "今天天气很好。我们去公园玩吧！你喜欢什么？",
    "japanese": "今日はとても天気がよかったので、公園までさんぽに行きました。「たのしかったです！」と言いました。",
    "thai": "ฉันชอบกินข้าวผัดกับไข่ดาวทุกวันเพราะมันอร่อยมากและราคาไม่แพงเลย",
    "mixed": "the GPT模型 is 很好用 , see https://example.org/a1b2c3d4e5f6g7h8i9j0k1l2m3n4o5p6 for 更多。",
    "url": "aGVsbG8gd29ybGQhIHRoaXMgaXMgYmFzZTY0IGFuZCBub3QgYSB3b3Jk",
}


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
@pytest.mark.parametrize("unit", ["whole_word", "span"])
def test_whole_word_masking_of_chinese_thai_and_urls_masks_about_15_percent(kind: Any, unit: Any) -> None:
    tokenizer = train_tokenizer(lambda: list(UNSPACED_TEXTS.values()), 500, kind)
    texts = [(text * 20)[:600] for text in UNSPACED_TEXTS.values()]
    corpus = load_corpus(section_of("\n\n".join(texts)), tokenizer, None)
    offsets = chunk_documents(corpus, np.arange(len(texts)), 62).first[:, 0]
    offsets = np.append(offsets, len(corpus.tokens))
    maskable = corpus.tokens != tokenizer.unk_token_id
    starts = (corpus.flags & WORD_START) > 0
    groups = sample_mask(maskable, starts, offsets, 0.15, unit, np.random.default_rng(0))
    for start, end in pairwise(offsets):
        if (num_maskable := int(maskable[start:end].sum())) >= 30:
            assert 0.03 <= (groups[start:end] >= 0).sum() / num_maskable <= 0.35


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_each_chinese_character_or_token_is_a_word(kind: Any) -> None:
    tokenizer = train_tokenizer(lambda: ["今天 天气", "今天 公园", "gpt a b c"] * 5, 300, kind)
    text = "今天公园𠀀 天gpt"
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    corpus = load_corpus(section_of(f"{text}\n\nb"), tokenizer, None)
    flags = corpus.flags[: corpus.document_offsets[1]]
    words = [encoding["offset_mapping"][index] for index in np.flatnonzero(flags & WORD_START)]
    starts = [start + (text[start] == " ") for start, _ in words]
    assert len(starts) == len(set(starts))  # parts of a character, and a space before it, are one word
    assert {4, 6, 7} <= set(starts)
    assert not {8, 9} & set(starts)


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("今天很好。我们去！「走吧。」他说", ["今", "我", "「", "他"]),
        ("真的吗？！是的……好", ["真", "是", "好"]),
        ("वह आया। वह गया।", ["व", "व"]),
        ("متى؟ الآن", ["م", "ا"]),
        ("ab… cd… ef 3.5…6", ["a", "c", "e"]),
    ],
)
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_full_stops_of_many_scripts_end_sentences(kind: Any, text: str, starts: list[str]) -> None:
    tokenizer = train_tokenizer(lambda: ["ab" if kind == "bpe" else text], 400, kind)
    corpus = load_corpus(section_of(f"{text}\n\n{text}"), tokenizer, None)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    end = corpus.document_offsets[1]
    assert corpus.tokens[:end].tolist() == encoding["input_ids"]  # where a sentence ends changes no token
    sentences = np.flatnonzero(corpus.flags[:end] & SENTENCE_START)
    assert [text[encoding["offset_mapping"][index][0] :].strip()[0] for index in sentences] == starts


def test_unknown_tokens_are_counted(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    corpus = load_corpus(section_of("a film 今 天\n\na film"), tokenizer, None)
    assert corpus.num_unknown == 2
    assert corpus.unknown_share == pytest.approx(2 / len(corpus.tokens))


WRAPPED = "\n".join(["the soup that anna had made for the old man", "was not as good as the bread of the other"] * 20)


@pytest.mark.parametrize(
    ("text", "layout", "num_documents"),
    [
        ("a fine film .\nthe soup was awful\nbad train .", "lines", 3),
        ("今天。\n明天天气很好。", "lines", 2),
        (WRAPPED, "files", 1),
        ("\n".join([WRAPPED] * 20), "files", 4),
        ("word " * 5000, "files", 3),
        (TEXT, None, 3),
    ],
)
def test_single_text_file_without_empty_lines(text: str, layout: str | None, num_documents: int) -> None:
    Path("big.txt").write_text(text, "utf-8")
    assert single_file_layout(Source(files=("big.txt",))) == layout
    assert len(list(read_documents(Source(files=("big.txt",)), None))) == num_documents


def test_files_of_a_source_are_not_listed_again_for_each_file(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    glob = corpus_reading.glob.glob
    monkeypatch.setattr(
        corpus_reading.glob, "glob", lambda pattern, **options: calls.append(pattern) or glob(pattern, **options)
    )
    for number in range(20):
        Path(f"{number}.txt").write_text("a fine film .")
    assert len(list(read_documents(Source(files=("*.txt",)), None))) == 20
    assert len(calls) <= 2


def test_several_text_files_without_empty_lines_are_a_document_each() -> None:
    for name in ("a.txt", "b.txt"):
        Path(name).write_text("a fine film .\nbad train .")
    assert len(list(read_documents(Source(files=("*.txt",)), None))) == 2


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_special_tokens_in_the_text_are_tokenized_as_text(kind: Any) -> None:
    tokenizer = train_tokenizer(lambda: ["a fine film bad train mask MASK sep"], 300, kind, lowercase=False)
    mask, sep, cls = tokenizer.mask_token, tokenizer.sep_token, tokenizer.cls_token
    corpus = load_corpus(section_of(f"a fine {mask} film {sep}\n\nbad train {cls}\n"), tokenizer, None)
    assert not set(corpus.tokens.tolist()) & {tokenizer.mask_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id}
    assert tokenizer(mask, add_special_tokens=False)["input_ids"] == [tokenizer.mask_token_id]


def test_corpus_cache_is_keyed_by_content_and_tokenizer(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, calls = ModelSource(str(encoder)).load_tokenizer(), []
    section = section_of()
    load_corpus(section, tokenizer, None, calls.append)
    load_corpus(section, tokenizer, None, calls.append)
    assert len(calls) == 1
    before = corpus_key(section, tokenizer, None)
    assert corpus_key(section_of(TEXT + "more"), tokenizer, None) != before
    assert corpus_key(section_of(), tokenizer, None) == before
    sample = CorpusSection.model_validate({"sources": [{"dataset": "sample"}]})
    sample_key = corpus_key(sample, tokenizer, None)
    monkeypatch.setattr(
        "bertcli.data.sample.sample_documents", lambda num_documents: iter(["another version's document"])
    )
    assert corpus_key(sample, tokenizer, None) != sample_key
    tokenizer.add_tokens(["harbourmaster"])
    assert corpus_key(section_of(), tokenizer, None) != before


def test_key_of_a_large_source_depends_on_sizes_times_and_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertcli.files.MAX_HASHED_BYTES", 1000)
    monkeypatch.setattr("bertcli.files.MIN_SAMPLED_BYTES", 500)
    monkeypatch.setattr("bertcli.files.SAMPLE_BYTES", 10)
    path, section = Path("large.txt"), CorpusSection.model_validate({"sources": [{"files": "large.txt"}]})
    content = b"a fine film . " * 1000

    def key_of(text: bytes, time: int) -> str:
        path.write_bytes(text)
        os.utime(path, ns=(time, time))
        return corpus_key(section, None, None)

    key = key_of(content, 1)
    assert key_of(content, 1) == key
    assert len({key, key_of(content, 2), key_of(content + b"a", 1), key_of(b"b" + content[1:], 1)}) == 4
    assert key_of(content[:20] + b"b" + content[21:], 1) == key  # between two samples, as no editor writes it
    path.write_bytes(content[:900])
    assert corpus_key(section, None, None) != key


def test_corpus_key_depends_on_both_suffixes(encoder: Path) -> None:
    tokenizer, content = ModelSource(str(encoder)).load_tokenizer(), gzip.compress(b'{"text": "a film"}\n' * 3, mtime=0)
    keys = set()
    for name in ("k.txt.gz", "k.jsonl.gz"):
        Path(name).write_bytes(content)
        section = CorpusSection.model_validate({"sources": [{"files": name}]})
        keys.add(corpus_key(section, tokenizer, None))
    assert len(keys) == 2


def test_interrupted_tokenization_leaves_no_files(encoder: Path, tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_corpus(section_of(), ModelSource(str(encoder)).load_tokenizer(), None, stop)
    assert list((tmp_path / "cache" / "corpora").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "0 non-empty documents"),
        ("\n \n\n", "0 non-empty documents"),
        ("one document only", "1 non-empty document"),
    ],
)
def test_corpus_needs_two_documents(encoder: Path, text: str, found: str) -> None:
    with pytest.raises(DataError, match=f"found {found} in the corpus, expected at least two"):
        load_corpus(section_of(text), ModelSource(str(encoder)).load_tokenizer(), None)


def synthetic_corpus(num_documents: int = 300) -> Corpus:
    """Build documents of 1 to 12 sentences; each token is the index of its document."""
    random = np.random.default_rng(0)
    tokens, flags, ends = [], [], [0]
    for document in range(num_documents):
        for _ in range(random.integers(1, 13)):
            length = int(random.integers(2, 20))
            tokens += [document] * length
            flags += [SENTENCE_START | WORD_START] + [WORD_START] * (length - 1)
        ends.append(len(tokens))
    return Corpus(
        np.array(tokens, np.uint16), np.array(flags, np.uint8), np.array(ends), np.array([0, 100, num_documents])
    )


def test_chunks_cover_every_document_and_cross_none() -> None:
    corpus = synthetic_corpus()
    selected = np.arange(0, 300, 3)
    spans = chunk_documents(corpus, selected, 17)
    assert spans.lengths.max() <= 17
    seen = np.concatenate([np.arange(start, end) for start, end in spans.first])
    expected = np.concatenate([np.arange(*corpus.document_offsets[document : document + 2]) for document in selected])
    assert seen.tolist() == expected.tolist()
    assert all(len(set(corpus.tokens[start:end].tolist())) == 1 for start, end in spans.first)


def test_held_out_documents_are_fixed_and_not_trained_on() -> None:
    train, held_out = split_train_held_out(synthetic_corpus(), 0.1)
    assert (len(train), len(held_out)) == (270, 30)
    assert not set(train) & set(held_out)
    again = split_train_held_out(synthetic_corpus(), 0.1)
    assert again[1].tolist() == held_out.tolist()


def test_held_out_split_has_a_minimum_number_of_documents() -> None:
    assert [len(part) for part in split_train_held_out(synthetic_corpus(40), 0.001, 2)] == [38, 2]
    assert [len(part) for part in split_train_held_out(synthetic_corpus(4), 0.9, 2)] == [2, 2]
    with pytest.raises(DataError, match="found 3 documents, expected at least 4"):
        split_train_held_out(synthetic_corpus(3), 0.5, 2)


def test_shards_partition_the_documents_at_random() -> None:
    corpus = synthetic_corpus()
    selected = np.arange(0, 300, 2)
    num_tokens = int(corpus.document_lengths(selected).sum())
    (single,) = split_into_shards(corpus, selected, num_tokens, np.random.default_rng(0))
    assert single.tolist() == selected.tolist()
    shards = list(split_into_shards(corpus, selected, num_tokens // 4, np.random.default_rng(0)))
    assert len(shards) == 4
    assert sorted(np.concatenate(shards).tolist()) == selected.tolist()
    assert max(int(corpus.document_lengths(shard).sum()) for shard in shards) < num_tokens // 2
    others = split_into_shards(corpus, selected, num_tokens // 4, np.random.default_rng(1))
    assert [shard.tolist() for shard in shards] != [shard.tolist() for shard in others]


def test_source_weights_set_the_repetitions_per_epoch() -> None:
    corpus = synthetic_corpus()
    sources = (Source(files=("a",), weight=2.5), Source(files=("b",), weight=0.25))
    documents = sample_epoch_documents(corpus, np.arange(300), sources, np.random.default_rng(0))
    counts = np.bincount(documents, minlength=300)
    assert counts[:100].sum() == 250
    assert set(counts[:100]) == {2, 3}
    assert counts[100:].sum() == 50


@pytest.mark.parametrize("max_tokens", [24, 61])
def test_next_sentence_pairs_are_balanced_with_negatives_from_other_documents(max_tokens: int) -> None:
    corpus = synthetic_corpus()
    spans = build_sentence_pairs(corpus, np.arange(300), max_tokens, "next_sentence", 0.1, np.random.default_rng(1))
    assert spans.pair_labels is not None
    assert spans.lengths.max() <= max_tokens
    assert np.diff(spans.first).min() > 0
    assert np.diff(spans.second).min() > 0
    is_next = spans.pair_labels == IS_NEXT
    assert is_next.mean() == pytest.approx(0.5, abs=0.01)
    documents = corpus.tokens[spans.first[:, 0]], corpus.tokens[spans.second[:, 0]]
    assert (documents[0][is_next] == documents[1][is_next]).all()
    assert (documents[0][~is_next] != documents[1][~is_next]).all()
    for (_, end), (start, _) in zip(spans.first[is_next], spans.second[is_next], strict=True):
        assert start >= end  # truncated tokens may be in between


def test_next_sentence_truncation_does_not_reveal_the_label() -> None:
    corpus = synthetic_corpus(2000)
    spans = build_sentence_pairs(corpus, np.arange(2000), 61, "next_sentence", 0.1, np.random.default_rng(1))
    bounds = np.union1d(np.flatnonzero(corpus.flags & SENTENCE_START), corpus.document_offsets)
    pattern = np.isin(np.stack((spans.first, spans.second), axis=1).reshape(-1, 4), bounds) @ (1, 2, 4, 8)
    assert spans.pair_labels is not None
    num_correct = sum(np.bincount(spans.pair_labels[pattern == value]).max() for value in np.unique(pattern))
    assert num_correct / len(spans) < 0.58  # 0.7 if negatives are truncated separately


def test_sentence_order_swaps_half_of_the_pairs() -> None:
    corpus = synthetic_corpus()
    spans = build_sentence_pairs(corpus, np.arange(300), 61, "sentence_order", 0.0, np.random.default_rng(1))
    assert spans.pair_labels is not None
    is_next = spans.pair_labels == IS_NEXT
    assert is_next.mean() == pytest.approx(0.5, abs=0.01)
    assert (corpus.tokens[spans.first[:, 0]] == corpus.tokens[spans.second[:, 0]]).all()
    assert (spans.first[is_next, 0] < spans.second[is_next, 0]).all()
    assert (spans.first[~is_next, 0] > spans.second[~is_next, 0]).all()


def test_next_sentence_pairs_need_two_documents() -> None:
    with pytest.raises(DataError, match="at least two documents"):
        build_sentence_pairs(synthetic_corpus(), np.array([5, 5]), 61, "next_sentence", 0.1, np.random.default_rng(1))
