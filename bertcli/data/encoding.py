"""Texts as token ids, kept as ragged arrays: no padding is stored, and a million short texts fit in memory.

A *row* of a data set becomes one *item* or, if it is longer than the model reads, several (windows). An item is one
sequence, or K of them that are answered together (the choices of a question).
Shapes: R rows, N items, K sequences an item, T tokens of all sequences, B items of a batch, S longest sequence of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.errors import DataError
from bertcli.recipe.schema import LongInputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

TEXTS_AT_ONCE = 2000


IGNORED_LABEL = -100


Note = tuple[int, str]
"""A row's number, and what happened to it."""


@dataclass(frozen=True)
class Encoded:
    """N items laid end to end; sequence i is `input_ids[offsets[i]:offsets[i + 1]]`."""

    input_ids: np.ndarray  # [T] int32
    token_type_ids: np.ndarray | None  # [T] int8; None if the model has no segments
    offsets: np.ndarray  # [N * K + 1] int64
    rows: np.ndarray  # [N] int64, ascending: the row of the data set each item comes from
    labels: np.ndarray | None  # [N …], or [T] if `labels_per_token`; None if unlabelled
    pad_token_id: int
    num_choices: int = 1  # K
    labels_per_token: bool = False
    places: np.ndarray | None = None  # [T …] where in its row each token stands; its head says how
    teacher_logits: np.ndarray | None = None  # [N, C] what another model answers
    teacher_states: np.ndarray | None = None  # [N * K, L, H] float16: what L of its layers make of first tokens
    vectors: np.ndarray | None = None  # [N * K, H] of first tokens, or [T, H]: last hidden states of a fixed encoder
    notes: tuple[Note, ...] = ()  # what a person should know of how rows were encoded

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of the longest sequence of each item. [N]"""
        return np.diff(self.offsets).reshape(-1, self.num_choices).max(1)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Tokens of all sequences of each item. [N]"""
        return np.diff(self.offsets[:: self.num_choices])

    @cached_property
    def num_targets(self) -> np.ndarray:
        """Answers learned from each item: one, or one for each labelled token. [N]"""
        if not self.labels_per_token:
            return np.ones(len(self), dtype=np.int64)
        assert self.labels is not None
        counts = np.concatenate(([0], np.cumsum(self.labels != IGNORED_LABEL)))
        return np.diff(counts[self.offsets])

    def batch(self, items: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """The given `items` [B] as padded tensors [B, S] ([B, K, S] with K choices), named as Hugging Face names them.

        S is the longest of these sequences, rounded up to `multiple_of` (8 suits tensor cores).
        """
        import torch

        choices = self.num_choices
        sequences = (items[:, None] * choices + np.arange(choices)).ravel()
        starts, lengths = self.offsets[sequences], self.offsets[sequences + 1] - self.offsets[sequences]
        width = -(-int(lengths.max()) // multiple_of) * multiple_of
        places = np.arange(width)
        mask = places < lengths[:, None]
        source = (starts[:, None] + places)[mask]
        shape = (len(items), choices, width) if choices > 1 else (len(items), width)

        def padded(values: np.ndarray, fill: int) -> torch.Tensor:
            table = np.full(mask.shape, fill, dtype=np.int64)
            table[mask] = values[source]
            return torch.from_numpy(table.reshape(shape))

        tensors = {
            "input_ids": padded(self.input_ids, self.pad_token_id),
            "attention_mask": torch.from_numpy((mask * 1).reshape(shape)),
        }
        if self.token_type_ids is not None:
            tensors["token_type_ids"] = padded(self.token_type_ids, 0)
        if self.labels is not None:
            whole = not self.labels_per_token
            tensors["labels"] = torch.from_numpy(self.labels[items]) if whole else padded(self.labels, IGNORED_LABEL)
        if self.teacher_logits is not None:
            tensors["teacher_logits"] = torch.from_numpy(self.teacher_logits[items])
        if self.teacher_states is not None:
            states = torch.from_numpy(self.teacher_states[sequences])
            tensors["teacher_states"] = states.unflatten(0, shape[:-1])
        if self.vectors is not None:
            if len(self.vectors) == len(self.offsets) - 1:
                table = self.vectors[sequences].reshape(*shape[:-1], 1, -1)
            else:
                table = np.zeros((*mask.shape, self.vectors.shape[1]), dtype=self.vectors.dtype)
                table[mask] = self.vectors[source]
            tensors["vectors"] = torch.from_numpy(table)
        return tensors

    def with_labels(self, input_ids: np.ndarray, labels: np.ndarray) -> Encoded:
        """The same sequences with other ids [T] and a label for each token [T]."""
        return replace(self, input_ids=input_ids, labels=labels, labels_per_token=True)

    def parts(self, max_items: int) -> Iterator[tuple[slice, Encoded]]:
        """These items in parts of about `max_items`, no row divided: the rows of a part and its items, by views."""
        start = 0
        while start < len(self):
            end = min(start + max_items, len(self))
            end = int(np.searchsorted(self.rows, self.rows[end - 1], side="right"))
            rows = slice(int(self.rows[start]), int(self.rows[end - 1]) + 1)
            yield rows, self._between(start, end)
            start = end

    def _between(self, start: int, end: int) -> Encoded:
        offsets = self.offsets[start * self.num_choices : end * self.num_choices + 1]
        items, tokens = slice(start, end), slice(offsets[0], offsets[-1])
        sequences = slice(start * self.num_choices, end * self.num_choices)

        def of_tokens(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[tokens]

        return replace(
            self,
            input_ids=self.input_ids[tokens],
            token_type_ids=of_tokens(self.token_type_ids),
            offsets=offsets - offsets[0],
            rows=self.rows[items] - self.rows[start],
            labels=of_tokens(self.labels) if self.labels is None or self.labels_per_token else self.labels[items],
            places=of_tokens(self.places),
            vectors=self._vectors_between(start, end, tokens),
            teacher_logits=None if self.teacher_logits is None else self.teacher_logits[items],
            teacher_states=None if self.teacher_states is None else self.teacher_states[sequences],
        )

    def _vectors_between(self, start: int, end: int, tokens: slice) -> np.ndarray | None:
        if self.vectors is None or len(self.vectors) != len(self.offsets) - 1:
            return None if self.vectors is None else self.vectors[tokens]
        return self.vectors[start * self.num_choices : end * self.num_choices]


@dataclass(frozen=True)
class Frame:
    """The special tokens a tokenizer sets around one text or two, and the segment of each part."""

    before: list[int]
    between: list[int]  # empty around one text
    after: list[int]
    segments: tuple[list[int], int, list[int], int, list[int]] | None  # None if the model has none

    @property
    def num_special(self) -> int:
        """Tokens the frame takes of a sequence."""
        return len(self.before) + len(self.between) + len(self.after)

    def join(self, first: list[int], second: list[int] | None = None) -> tuple[list[int], list[int] | None]:
        """Token ids and segments of a whole sequence."""
        second = second or []
        ids = [*self.before, *first, *self.between, *second, *self.after]
        if self.segments is None:
            return ids, None
        before, one, between, two, after = self.segments
        return ids, [*before, *[one] * len(first), *between, *[two] * len(second), *after]

    def fit(self, first: list[int], second: list[int], room: int) -> tuple[list[int], list[int] | None]:
        """A pair of which `room` tokens are kept, the longer text cut first."""
        num_first, num_second = cut_pair(len(first), len(second), room)
        return self.join(first[:num_first], second[:num_second])


def frame_of(tokenizer: PreTrainedTokenizerBase, *, pair: bool) -> Frame:
    """The frame of one text or of a pair, read off what the tokenizer makes of a short one."""
    output = tokenizer("a", "a" if pair else None)
    part_of, ids, types = output.sequence_ids(0), output["input_ids"], output.get("token_type_ids")
    first = [at for at, part in enumerate(part_of) if part == 0]
    second = [at for at, part in enumerate(part_of) if part == 1] or [len(ids), len(ids) - 1]
    slices = [slice(0, first[0]), slice(first[-1] + 1, second[0]), slice(second[-1] + 1, len(ids))]
    if not pair:  # all that follows the text comes after it
        slices = [slices[0], slice(0, 0), slices[1]]
    before, between, after = (ids[one] for one in slices)
    if types is None:
        return Frame(before, between, after, None)
    type_of_second = types[second[0]] if pair else 0
    segments = (types[slices[0]], types[first[0]], types[slices[1]], type_of_second, types[slices[2]])
    return Frame(before, between, after, segments)


class Sequences:
    """Sequences as they are made, one after the other; `encoded` lays them end to end."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self._ids: list[np.ndarray] = []
        self._types: list[np.ndarray] = []

    def add(self, row: int, ids: list[int], types: list[int] | None) -> None:
        """Add a sequence made of row `row`."""
        self.rows.append(row)
        self._ids.append(np.asarray(ids, dtype=np.int32))
        if types is not None:
            self._types.append(np.asarray(types, dtype=np.int8))

    def encoded(self, tokenizer: PreTrainedTokenizerBase, labels: np.ndarray | None, **rest: Any) -> Encoded:
        """All sequences, K of them an item (`num_choices`, one if not given)."""
        lengths = [len(ids) for ids in self._ids]
        return Encoded(
            input_ids=np.concatenate(self._ids) if self._ids else np.empty(0, np.int32),
            token_type_ids=np.concatenate(self._types) if self._types else None,
            offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            rows=np.asarray(self.rows[:: rest.get("num_choices", 1)], dtype=np.int64),
            labels=labels,
            pad_token_id=tokenizer.pad_token_id or 0,
            **rest,
        )


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[list[int]]:
    """The token ids of each text, without special tokens."""
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        yield from tokenize(tokenizer, list(texts[start : start + TEXTS_AT_ONCE]))["input_ids"]


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Any, **options: Any) -> Any:
    """Call the tokenizer for whole texts without special tokens."""
    return tokenizer(
        texts,
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # longer than the model reads is no mistake here: it is cut afterwards
        **options,
    )


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    labels: np.ndarray | None = None,
    *,
    long_inputs: LongInputs = "keep_head",
    doc_stride: int | None = None,
) -> Encoded:
    """Tokenise R texts (or R pairs), at most `max_length` tokens a sequence, special ones included.

    Args:
        texts: R first texts.
        pairs: R second texts, or None. Pairs that are too long are cut at the end, the longer text first.
        labels: [R] or [R, C], carried along; each window of a row has the row's.
        long_inputs: what becomes of a single text that is too long.
        doc_stride: tokens that two neighbouring windows share; None: a third of a window.
    """
    frame, made = frame_of(tokenizer, pair=pairs is not None), Sequences()
    room = max_length - frame.num_special
    if pairs is None:
        for row, ids in enumerate(token_ids(tokenizer, texts)):
            for part in cut_text(ids, room, long_inputs, doc_stride):
                made.add(row, *frame.join(part))
    else:
        both = zip(token_ids(tokenizer, texts), token_ids(tokenizer, pairs), strict=True)
        for row, (first, second) in enumerate(both):
            made.add(row, *frame.fit(first, second, room))
    return made.encoded(tokenizer, None if labels is None else labels[made.rows])


def cut_text(ids: list[int], room: int, long_inputs: LongInputs, doc_stride: int | None) -> Iterator[list[int]]:
    """What is read of a text of any length: a part of it, or overlapping windows that cover it."""
    if len(ids) <= room or long_inputs == "keep_head":
        yield ids[:room]
    elif long_inputs == "keep_tail":
        yield ids[len(ids) - room :]
    elif long_inputs == "keep_head_and_tail":
        num_head = room // 4  # as Sun et al. 2019 (128 of 510), https://arxiv.org/abs/1905.05583
        yield ids[:num_head] + ids[len(ids) - (room - num_head) :]
    else:
        yield from (ids[start:end] for start, end in windows(len(ids), room, doc_stride))


def cut_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text of a pair are kept, the longer one cut first (as `longest_first` in tokenizers)."""
    shorter, longer = sorted((first, second))
    if shorter + longer > room:
        longer = max(shorter, room - shorter)
        if shorter + longer > room:
            shorter, longer = room // 2, room - room // 2
    return (shorter, longer) if first <= second else (longer, shorter)


def windows(length: int, room: int, doc_stride: int | None) -> list[tuple[int, int]]:
    """Start and end of each window of `room` tokens over `length`, neighbours sharing `doc_stride` (None: a third).

    Raises:
        DataError: the windows would not move on.
    """
    if length <= room:
        return [(0, length)]
    if doc_stride is None:
        doc_stride = room // 3
    if doc_stride >= room:
        raise DataError(
            f"found data.doc_stride {doc_stride}, but a window has room for {room} tokens; set a smaller doc_stride or "
            "a larger data.max_length"
        )
    starts = range(0, length - doc_stride, room - doc_stride)
    return [(start, min(start + room, length)) for start in starts]
