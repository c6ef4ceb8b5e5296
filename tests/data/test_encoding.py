"""Encoding matches the tokenizer; windows cover long texts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from bertcli.data.encoding import (
    Encoded,
    encode_texts,
    special_tokens_template,
    split_long_text,
    truncate_pair,
    window_bounds,
)
from bertcli.errors import DataError
from bertcli.models.from_pretrained import ModelSource


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


def test_special_tokens_template_matches_the_tokenizer(roberta_tokenizer: PreTrainedTokenizerBase) -> None:
    template = special_tokens_template(roberta_tokenizer, pair=True)
    start, end = roberta_tokenizer.bos_token_id, roberta_tokenizer.eos_token_id
    assert (template.prefix, template.separator, template.suffix) == ([start], [end, end], [end])
    assert template.num_special_tokens == 4
