"""Encoding matches the tokenizer; windows cover long texts."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bertcli.data.encoding import (
    Encoded,
    EncodedBuilder,
    encode_texts,
    iter_input_ids,
    special_tokens_template,
    split_long_text,
    splits_at_spaces,
    token_ids,
    tokenize,
    truncate_pair,
    window_bounds,
)
from bertcli.errors import DataError
from bertcli.heads.multiple_choice import MultipleChoice
from bertcli.models.from_pretrained import ModelSource
from bertcli.models.tokenizer_training import train_tokenizer
from bertcli.recipe.schema import DataSection, LongInputs
from bertcli.tasks.task import Task

from ..conftest import TEXTS

WORDS = ["a fine film", "b", "Soup", "İstanbul", "Σας", "ﬁne", "e\u0301", "中国", "🙂", "x-1", "don't",
         "[SEP]", "</s>", "12", "\u00a0", "  ", "\t", "\n", ". ", "ൎ", "\u200d", "newtok"]  # fmt: skip


def sentencepiece_bpe() -> PreTrainedTokenizerFast:
    """BPE over whole texts, whose tokens may contain spaces: no pre-tokenizer."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.train_from_iterator(TEXTS * 9, trainers.BpeTrainer(vocab_size=200, special_tokens=["[UNK]"]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[UNK]")


def word_level() -> PreTrainedTokenizerFast:
    """Words between white space, special tokens among them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["[UNK]", "[CLS]", "[SEP]", *{word: 0 for text in TEXTS for word in text.split()}, "b"]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[UNK]", sep_token="[SEP]")


@pytest.fixture(scope="module")
def tokenizers_by_kind(roberta_tokenizer: PreTrainedTokenizerBase) -> dict[str, PreTrainedTokenizerBase]:
    """Tokenizers of all kinds, with an added token that is not special."""
    texts = [*TEXTS, "SEP CLS PAD MASK s pad mask", "[ ] < > / . [ ] b"]
    made: dict[str, Any] = {
        f"{kind} {'uncased' if lowercase else 'cased'}": train_tokenizer(lambda: texts, 150, kind, lowercase=lowercase)
        for kind in ("wordpiece", "bpe", "unigram")
        for lowercase in (True, False)
    }
    made |= {"roberta": roberta_tokenizer, "sentencepiece bpe": sentencepiece_bpe(), "word level": word_level()}
    made["bpe cased"].add_tokens(["newtok"])
    made["unigram cased"].add_tokens(["newtok"])
    return made


def test_special_tokens_written_in_a_text_are_text(
    tokenizers_by_kind: dict[str, PreTrainedTokenizerBase],
) -> None:
    for kind, tokenizer in tokenizers_by_kind.items():
        special_ids = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        names = " ".join(tokenizer.all_special_tokens)
        for text in (f"a {names} film", names.replace(" ", ""), "film [SEP][PAD] <s> </s> ［SEP］"):
            output = tokenize(tokenizer, [text, "film"], return_offsets_mapping=True)
            assert special_ids.isdisjoint(output["input_ids"][0]), (kind, text)
            assert max(end for _, end in output["offset_mapping"][0]) == len(text)
            words = tokenize(tokenizer, [text.split()], is_split_into_words=True)
            assert special_ids.isdisjoint(words["input_ids"][0]), (kind, text)
            assert {*words.word_ids(0)} == {*range(len(text.split()))}
        assert encode_texts(tokenizer, ["film"], None, 9).input_ids.tolist() == tokenizer("film")["input_ids"]


def test_special_tokens_written_in_a_text_are_split_as_in_the_original_bert(encoder: Path) -> None:
    tokenizer = train_tokenizer(lambda: ["good [ sep ] bad [ pad ]"], 60)
    encoded = encode_texts(tokenizer, ["good [SEP] bad [PAD]"], None, 32)
    tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids.tolist())
    assert tokens == ["[CLS]", "good", "[", "sep", "]", "bad", "[", "pad", "]", "[SEP]"]


def test_added_tokens_that_are_not_special_stay_tokens(tokenizers_by_kind: dict[str, PreTrainedTokenizerBase]) -> None:
    for kind in ("bpe cased", "unigram cased"):
        tokenizer = tokenizers_by_kind[kind]
        added = tokenizer.convert_tokens_to_ids("newtok")
        assert tokenize(tokenizer, ["film newtok </s> [SEP]"])["input_ids"][0].count(added) == 1


def test_ends_of_long_texts_are_those_of_the_full_tokenization(
    tokenizers_by_kind: dict[str, PreTrainedTokenizerBase],
) -> None:
    rng = random.Random(1)
    texts = ["".join(rng.choice(WORDS) + rng.choice(["", " "]) for _ in range(150)) for _ in range(12)]
    texts += [
        "",
        "a " * 300,
        "a" * 600,
        " " * 600,
        f"{'🙂' * 300} b a",
        f"a b{' ' * 300}",
        "中" * 300,
        "ab" + " b" * 200,
    ]
    for kind, tokenizer in tokenizers_by_kind.items():
        all_ids = list(iter_input_ids(tokenizer, texts))
        for long_inputs in get_args(LongInputs):
            encoded = encode_texts(tokenizer, texts, None, 9, long_inputs=long_inputs)
            template = special_tokens_template(tokenizer, pair=False)
            parts = (
                split_long_text(ids or template.empty_text, 9 - template.num_special_tokens, long_inputs, None)
                for ids in all_ids
            )
            expected = [template.build_inputs(part)[0] for row in parts for part in row]
            found = [part.tolist() for part in np.split(encoded.input_ids, encoded.offsets[1:-1])]
            assert found == expected, (kind, long_inputs)


def long_pairs() -> list[tuple[str, str]]:
    """Return pairs of texts of 0 to 300 words, of equal and of different lengths."""
    rng = random.Random(2)
    texts = [" ".join(rng.choices(WORDS, k=size)) for size in (0, 1, 3, 4, 150, 151)]
    texts += ["a " * 300, " " * 600, "\U0001f642" * 300 + " b a", "ab" + " b" * 200]
    return [(first, second) for first in texts for second in texts]


@pytest.mark.parametrize("max_length", [9, 10])  # an odd and an even number of tokens without special ones
def test_pairs_of_long_texts_are_encoded_as_if_tokenized_in_full(
    tokenizers_by_kind: dict[str, PreTrainedTokenizerBase], max_length: int
) -> None:
    firsts, seconds = map(list, zip(*long_pairs(), strict=True))
    columns = {"text": firsts, "a": seconds, "b": firsts}
    task = Task.model_validate(
        {"head": "multiple_choice", "dataset": "x", "text_columns": ("text",), "choice_columns": ("a", "b")}
    )
    for kind, tokenizer in tokenizers_by_kind.items():
        template = special_tokens_template(tokenizer, pair=True)
        max_tokens = max_length - template.num_special_tokens

        def expected(pairs: list[tuple[str, str]]) -> list[list[int]]:
            sides = (list(iter_input_ids(tokenizer, side)) for side in zip(*pairs, strict=True))  # noqa: B023
            ids = zip(*sides, strict=True)
            empty = template.empty_text  # noqa: B023
            return [
                template.build_truncated_pair(a if a or b else empty, b, max_tokens)[0]  # noqa: B023
                for a, b in ids
            ]

        encoded = encode_texts(tokenizer, firsts, seconds, max_length)
        found = [part.tolist() for part in np.split(encoded.input_ids, encoded.offsets[1:-1])]
        assert found == expected(long_pairs()), kind
        if template.num_special_tokens:  # without, an empty question has no tokens
            rows = Dataset.from_dict(columns)
            choices = MultipleChoice().encode(task, rows, tokenizer, DataSection(max_length=max_length))
            found = [part.tolist() for part in np.split(choices.input_ids, choices.offsets[1:-1])]
            pairs = [(first, choice.strip()) for first, second in long_pairs() for choice in (second, first)]
            assert found == expected(pairs), kind


def test_only_the_ends_of_a_long_text_are_tokenized(
    tokenizers_by_kind: dict[str, PreTrainedTokenizerBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bertcli.data import encoding

    lengths: list[int] = []
    monkeypatch.setattr(
        encoding, "tokenize", lambda tokenizer, texts: lengths.extend(map(len, texts)) or tokenize(tokenizer, texts)
    )
    for tokenizer in map(
        tokenizers_by_kind.__getitem__, ("wordpiece uncased", "bpe cased", "unigram cased", "roberta")
    ):
        for long_inputs in ("keep_head", "keep_tail", "keep_head_and_tail"):
            encode_texts(tokenizer, ["a b " * 50_000, "film"], None, 32, long_inputs=long_inputs)  # type: ignore[arg-type]
        for max_length in (32, 33):
            encode_texts(tokenizer, ["a b " * 50_000, "film", "soup"], ["bad", "a b " * 50_000, "x"], max_length)
    assert max(lengths) < 1000


def test_tokenizers_whose_tokens_cross_spaces_tokenize_all_of_a_text(
    roberta_tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert splits_at_spaces(roberta_tokenizer)
    assert not splits_at_spaces(sentencepiece_bpe())
    tokenizer = word_level()
    assert splits_at_spaces(tokenizer)
    tokenizer.add_tokens(["new york"])
    assert not splits_at_spaces(tokenizer)


def test_encode_texts_matches_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    texts, pairs = ["a fine film", "bad", "", "soup " * 30], ["what a lovely day " * 9, "x", "soup", "film " * 40]
    for second in (None, pairs):
        for max_length in (13, 14, 64):
            batch = encode_texts(tokenizer, texts, second, max_length).batch(np.arange(4))
            expected = tokenizer(
                texts, second, truncation=True, max_length=max_length, padding=True, return_tensors="pt"
            )
            assert set(batch) == set(expected)
            for name, tensor in expected.items():
                assert batch[name].equal(tensor), (name, max_length)


def test_truncate_pair_matches_the_tokenizer(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    for first in range(0, 15, 2):
        for second in range(0, 15, 3):
            for room in (1, 4, 9, 10):
                output = tokenizer(["a " * first], ["a " * second], truncation="longest_first", max_length=room + 3)
                parts = output.sequence_ids(0)
                assert truncate_pair(first, second, room) == (parts.count(0), parts.count(1)), (first, second, room)


def test_encode_texts_keeps_the_order_over_several_tokenizer_batches(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    texts = ["film " * (1 + row % 5) for row in range(4100)]
    assert encode_texts(tokenizer, texts, None, 64).lengths.tolist() == [3 + row % 5 for row in range(4100)]


@pytest.mark.parametrize(
    ("length", "window_size", "doc_stride"), [(50, 13, 5), (50, 13, 12), (13, 13, 5), (14, 13, None), (0, 13, 5)]
)
def test_windows_cover_the_text_and_each_adds_tokens(length: int, window_size: int, doc_stride: int | None) -> None:
    windows = window_bounds(length, window_size, doc_stride)
    assert {index for start, end in windows for index in range(start, end)} == set(range(length))
    assert all(end - start <= window_size for start, end in windows)
    assert windows[-1][1] == length
    shared = window_size // 3 if doc_stride is None else doc_stride
    for (_, end), (start, later_end) in pairwise(windows):
        assert end - start == shared
        assert later_end > end


def test_doc_stride_as_large_as_the_window_is_rejected() -> None:
    with pytest.raises(DataError, match="smaller doc_stride"):
        window_bounds(50, 13, 13)


def test_split_long_text_follows_long_inputs() -> None:
    ids = list(range(40))
    assert list(split_long_text(ids, 8, "keep_head", None)) == [ids[:8]]
    assert list(split_long_text(ids, 8, "keep_tail", None)) == [ids[-8:]]
    assert list(split_long_text(ids, 8, "keep_head_and_tail", None)) == [[0, 1, *range(34, 40)]]
    assert sorted({token for part in split_long_text(ids, 8, "windows", 2) for token in part}) == ids
    for how in ("keep_head", "keep_tail", "keep_head_and_tail", "windows"):
        assert list(split_long_text(ids[:8], 8, how, None)) == [ids[:8]]  # type: ignore[arg-type]


def test_windows_have_the_label_of_their_row(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    labels = np.array([3, 4, 5])
    encoded = encode_texts(tokenizer, ["film", "film " * 30, "bad"], None, 12, labels, long_inputs="windows")
    assert encoded.rows.tolist() == [0, *[1] * (len(encoded) - 2), 2]
    assert encoded.labels is not None
    assert encoded.labels.tolist() == labels[encoded.rows].tolist()


@pytest.mark.parametrize("max_items", [1, 2, 4, 100])
def test_encoded_chunks_keep_rows_together(max_items: int) -> None:
    rows, lengths = np.array([0, 1, 1, 1, 2, 3, 3]), np.array([3, 1, 2, 4, 2, 5, 1])
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = np.arange(offsets[-1])
    encoded = Encoded(ids, None, offsets, rows, ids * 2, 0, labels_per_token=True, alignment=ids * 3)
    chunks = list(encoded.chunks(max_items))
    assert [row for part, _ in chunks for row in range(part.start, part.stop)] == [0, 1, 2, 3]
    for name, factor in (("input_ids", 1), ("labels", 2), ("alignment", 3)):
        assert np.concatenate([getattr(chunk, name) for _, chunk in chunks]).tolist() == (ids * factor).tolist()
    for part, chunk in chunks:
        assert chunk.rows[0] == 0
        assert chunk.rows[-1] == part.stop - part.start - 1
        assert chunk.lengths.tolist() == lengths[(rows >= part.start) & (rows < part.stop)].tolist()


def test_encoded_batch_with_choices() -> None:
    offsets = np.array([0, 2, 5, 6, 8])
    encoded = Encoded(np.arange(8), None, offsets, np.arange(2), np.array([1, 0]), pad_token_id=-1, num_choices=2)
    batch = encoded.batch(np.array([1, 0]))
    assert batch["input_ids"].tolist() == [[[5, -1, -1], [6, 7, -1]], [[0, 1, -1], [2, 3, 4]]]
    assert batch["labels"].tolist() == [0, 1]
    assert (encoded.lengths.tolist(), encoded.num_tokens.tolist()) == ([3, 2], [5, 3])


def test_token_ids_are_those_of_the_tokenizer(tokenizers_by_kind: dict[str, PreTrainedTokenizerBase]) -> None:
    random_words = random.Random(0)
    texts = ["", *TEXTS, *(" ".join(random_words.choices(WORDS, k=9)) for _ in range(200))]
    for kind, tokenizer in tokenizers_by_kind.items():
        tokenizer(texts, truncation=True, max_length=3, padding=True)  # must leave no trace
        assert token_ids(tokenizer, texts) == tokenize(tokenizer, texts)["input_ids"], kind
        assert token_ids(tokenizer, TEXTS) == tokenizer(TEXTS, add_special_tokens=False)["input_ids"], kind


def test_special_tokens_template_matches_the_tokenizer(roberta_tokenizer: PreTrainedTokenizerBase) -> None:
    template = special_tokens_template(roberta_tokenizer, pair=True)
    start, end = roberta_tokenizer.bos_token_id, roberta_tokenizer.eos_token_id
    assert (template.prefix, template.separator, template.suffix) == ([start], [end, end], [end])
    assert template.num_special_tokens == 4


def test_empty_text_is_one_token_if_the_tokenizer_adds_no_special_tokens(
    gpt2_tokenizer: PreTrainedTokenizerBase,
) -> None:
    encoded = encode_texts(gpt2_tokenizer, ["a", "", "b"], None, 8)
    assert encoded.lengths.tolist() == [1, 1, 1]
    assert encoded.input_ids[1] == gpt2_tokenizer.eos_token_id
    assert encode_texts(gpt2_tokenizer, ["", ""], ["", "b"], 8).lengths.tolist() == [1, 1]
    with pytest.raises(DataError, match="row 3 is empty"):
        EncodedBuilder().add(2, [], None)
