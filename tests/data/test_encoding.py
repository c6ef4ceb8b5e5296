"""Encoded texts equal what the tokenizer says of each alone; windows cover long ones."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from bertcli.data.encoding import Encoded, cut_pair, cut_text, encode_texts, frame_of, windows
from bertcli.errors import DataError
from bertcli.models.from_pretrained import load_tokenizer


def test_texts_and_pairs_match_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
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


def test_pairs_are_cut_as_the_tokenizer_cuts_them(encoder: Path) -> None:
    tokenizer = load_tokenizer(str(encoder), None)
    for first in range(0, 15, 2):
        for second in range(0, 15, 3):
            for room in (1, 4, 9, 10):
                output = tokenizer(["a " * first], ["a " * second], truncation="longest_first", max_length=room + 3)
                parts = output.sequence_ids(0)
                assert cut_pair(first, second, room) == (parts.count(0), parts.count(1)), (first, second, room)


def test_more_texts_than_one_slice_keep_their_order(encoder: Path) -> None:
    tokenizer = load_tokenizer(str(encoder), None)
    texts = ["film " * (1 + row % 5) for row in range(4100)]
    assert encode_texts(tokenizer, texts, None, 64).lengths.tolist() == [3 + row % 5 for row in range(4100)]


@pytest.mark.parametrize(
    ("length", "room", "doc_stride"), [(50, 13, 5), (50, 13, 12), (13, 13, 5), (14, 13, None), (0, 13, 5)]
)
def test_windows_cover_the_text_and_each_brings_something_new(length: int, room: int, doc_stride: int | None) -> None:
    cuts = windows(length, room, doc_stride)
    assert {at for start, end in cuts for at in range(start, end)} == set(range(length))
    assert all(end - start <= room for start, end in cuts)
    assert cuts[-1][1] == length
    shared = room // 3 if doc_stride is None else doc_stride
    for (_, end), (start, later_end) in pairwise(cuts):
        assert end - start == shared
        assert later_end > end


def test_a_stride_as_wide_as_the_window_is_refused() -> None:
    with pytest.raises(DataError, match="smaller doc_stride"):
        windows(50, 13, 13)


def test_long_texts_are_cut_as_asked() -> None:
    ids = list(range(40))
    assert list(cut_text(ids, 8, "keep_head", None)) == [ids[:8]]
    assert list(cut_text(ids, 8, "keep_tail", None)) == [ids[-8:]]
    assert list(cut_text(ids, 8, "keep_head_and_tail", None)) == [[0, 1, *range(34, 40)]]
    assert sorted({at for part in cut_text(ids, 8, "windows", 2) for at in part}) == ids
    for how in ("keep_head", "keep_tail", "keep_head_and_tail", "windows"):
        assert list(cut_text(ids[:8], 8, how, None)) == [ids[:8]]  # type: ignore[arg-type]


def test_windows_carry_the_label_of_their_row(encoder: Path) -> None:
    tokenizer = load_tokenizer(str(encoder), None)
    labels = np.array([3, 4, 5])
    encoded = encode_texts(tokenizer, ["film", "film " * 30, "bad"], None, 12, labels, long_inputs="windows")
    assert encoded.rows.tolist() == [0, *[1] * (len(encoded) - 2), 2]
    assert encoded.labels is not None
    assert encoded.labels.tolist() == labels[encoded.rows].tolist()


@pytest.mark.parametrize("max_items", [1, 2, 4, 100])
def test_parts_divide_no_row_and_hold_everything(max_items: int) -> None:
    rows, lengths = np.array([0, 1, 1, 1, 2, 3, 3]), np.array([3, 1, 2, 4, 2, 5, 1])
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = np.arange(offsets[-1])
    whole = Encoded(ids, None, offsets, rows, ids * 2, 0, labels_per_token=True, places=ids * 3)
    parts = list(whole.parts(max_items))
    assert [at for some, _ in parts for at in range(some.start, some.stop)] == [0, 1, 2, 3]
    for name, factor in (("input_ids", 1), ("labels", 2), ("places", 3)):
        assert np.concatenate([getattr(part, name) for _, part in parts]).tolist() == (ids * factor).tolist()
    for some, part in parts:
        assert part.rows[0] == 0
        assert part.rows[-1] == some.stop - some.start - 1
        assert part.lengths.tolist() == lengths[(rows >= some.start) & (rows < some.stop)].tolist()


def test_choices_stand_side_by_side() -> None:
    offsets = np.array([0, 2, 5, 6, 8])
    encoded = Encoded(np.arange(8), None, offsets, np.arange(2), np.array([1, 0]), pad_token_id=-1, num_choices=2)
    batch = encoded.batch(np.array([1, 0]))
    assert batch["input_ids"].tolist() == [[[5, -1, -1], [6, 7, -1]], [[0, 1, -1], [2, 3, 4]]]
    assert batch["labels"].tolist() == [0, 1]
    assert (encoded.lengths.tolist(), encoded.sizes.tolist()) == ([3, 2], [5, 3])


def test_a_frame_is_what_the_tokenizer_sets_around(roberta_tokenizer: PreTrainedTokenizerBase) -> None:
    frame = frame_of(roberta_tokenizer, pair=True)
    start, end = roberta_tokenizer.bos_token_id, roberta_tokenizer.eos_token_id
    assert (frame.before, frame.between, frame.after) == ([start], [end, end], [end])
    assert frame.num_special == 4
