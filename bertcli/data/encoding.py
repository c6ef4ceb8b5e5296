"""Texts encoded as token IDs in ragged arrays: no padding is stored, so a million short texts fit in memory.

A *row* of a dataset becomes one *item*, or several (windows) if it exceeds the model's input length. An item is one
sequence, or K sequences that are scored together (the choices of a question).
Shapes: R rows, N items, K sequences per item, T tokens of all sequences, B items of a batch, S tokens in its longest
sequence.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.errors import DataError
from bertcli.recipe.schema import LongInputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

TOKENIZE_BATCH_SIZE = 2000  # texts per call of the tokenizer
CHARACTERS_PER_TOKEN, GROWTH_FACTOR = 16, 8  # initial size of the parts of long texts to tokenize, and its growth
CUT = re.compile(r"(?<=[^\W_]) (?=[^\W_])")  # before a single space between letters or digits: safe for normalizers
ENDS_AFTER_CUT = re.compile(r"[^\W_] (?:[^\W_]|$)")  # in an added token
IGNORED_LABEL = -100
RowWarning = tuple[int, str]
"""A row index and a warning about that row."""


@dataclass(frozen=True)
class Encoded:
    """N encoded items, concatenated; sequence i is `input_ids[offsets[i]:offsets[i + 1]]`."""

    input_ids: np.ndarray  # [T] int32
    token_type_ids: np.ndarray | None  # [T] int8; None if the model has no token types
    offsets: np.ndarray  # [N * K + 1] int64
    rows: np.ndarray  # [N] int64, ascending: the dataset row of each item
    labels: np.ndarray | None  # [N …], or [T] if `labels_per_token`; None if unlabeled
    pad_token_id: int
    padding_side: str = "right"  # or left
    num_choices: int = 1  # K
    labels_per_token: bool = False
    alignment: np.ndarray | None = None  # [T …] the part of its row each token aligns to, as defined by the head
    teacher_logits: np.ndarray | None = None  # [N, C]
    teacher_states: np.ndarray | None = None  # [N * K, L, H] float16: first tokens' hidden states in L teacher layers
    frozen_hidden_states: np.ndarray | None = None  # last layer of a frozen encoder: [N * K, H] first tokens, or [T, H]
    row_warnings: tuple[RowWarning, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens in the longest sequence of each item. [N]"""
        return np.diff(self.offsets).reshape(-1, self.num_choices).max(1)

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """Number of tokens in each item, summed over its sequences. [N]"""
        return np.diff(self.offsets[:: self.num_choices])

    @cached_property
    def num_targets(self) -> np.ndarray:
        """Number of training targets in each item: one, or one per labeled token. [N]"""
        if not self.labels_per_token:
            return np.ones(len(self), dtype=np.int64)
        assert self.labels is not None
        counts = np.concatenate(([0], np.cumsum(self.labels != IGNORED_LABEL)))
        return np.diff(counts[self.offsets])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the token IDs, of how they are divided into sequences and rows, and of the labels."""
        digest = hashlib.blake2b(digest_size=16)
        for values in (self.input_ids, self.offsets, self.rows, self.labels):
            if values is not None:
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def batch(self, items: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """Collate `items` [B] into padded tensors [B, S] ([B, K, S] with K choices), named as in transformers.

        S is the length of the longest of these sequences, rounded up to a multiple of `multiple_of` (8 suits tensor
        cores).
        """
        import torch

        choices = self.num_choices
        sequences = (items[:, None] * choices + np.arange(choices)).ravel()
        starts, lengths = self.offsets[sequences], self.offsets[sequences + 1] - self.offsets[sequences]
        width = -(-int(lengths.max()) // multiple_of) * multiple_of
        positions = np.arange(width) - (width - lengths[:, None] if self.padding_side == "left" else 0)
        mask = (positions >= 0) & (positions < lengths[:, None])
        source = (starts[:, None] + positions)[mask]
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
            per_token = self.labels_per_token
            tensors["labels"] = (
                padded(self.labels, IGNORED_LABEL) if per_token else torch.from_numpy(self.labels[items])
            )
        if self.teacher_logits is not None:
            tensors["teacher_logits"] = torch.from_numpy(self.teacher_logits[items])
        if self.teacher_states is not None:
            states = torch.from_numpy(self.teacher_states[sequences])
            tensors["teacher_states"] = states.unflatten(0, shape[:-1])
        if self.frozen_hidden_states is not None:
            hidden_states = self.frozen_hidden_states
            if len(hidden_states) == len(self.offsets) - 1:
                table = hidden_states[sequences].reshape(*shape[:-1], 1, -1)
            else:
                table = np.zeros((*mask.shape, hidden_states.shape[1]), dtype=hidden_states.dtype)
                table[mask] = hidden_states[source]
            tensors["frozen_hidden_states"] = torch.from_numpy(table)
        return tensors

    def with_labels(self, input_ids: np.ndarray, labels: np.ndarray) -> Encoded:
        """Return the same sequences with other token IDs [T] and a label for each token [T]."""
        return replace(self, input_ids=input_ids, labels=labels, labels_per_token=True)

    def chunks(self, max_items: int) -> Iterator[tuple[slice, Encoded]]:
        """Split into chunks (views) of about `max_items` items, keeping the items of a row together.

        Yields:
            The slice of rows in a chunk, and its items with rows numbered from 0.
        """
        start = 0
        while start < len(self):
            end = min(start + max_items, len(self))
            end = int(np.searchsorted(self.rows, self.rows[end - 1], side="right"))
            rows = slice(int(self.rows[start]), int(self.rows[end - 1]) + 1)
            yield rows, self._slice(start, end)
            start = end

    def _slice(self, start: int, end: int) -> Encoded:
        offsets = self.offsets[start * self.num_choices : end * self.num_choices + 1]
        items, tokens = slice(start, end), slice(offsets[0], offsets[-1])
        sequences = slice(start * self.num_choices, end * self.num_choices)

        def slice_tokens(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[tokens]

        return replace(
            self,
            input_ids=self.input_ids[tokens],
            token_type_ids=slice_tokens(self.token_type_ids),
            offsets=offsets - offsets[0],
            rows=self.rows[items] - self.rows[start],
            labels=slice_tokens(self.labels) if self.labels is None or self.labels_per_token else self.labels[items],
            alignment=slice_tokens(self.alignment),
            frozen_hidden_states=self._slice_frozen_hidden_states(sequences, tokens),
            teacher_logits=None if self.teacher_logits is None else self.teacher_logits[items],
            teacher_states=None if self.teacher_states is None else self.teacher_states[sequences],
        )

    def _slice_frozen_hidden_states(self, sequences: slice, tokens: slice) -> np.ndarray | None:
        if self.frozen_hidden_states is None:
            return None
        first_only = len(self.frozen_hidden_states) == len(self.offsets) - 1
        return self.frozen_hidden_states[sequences if first_only else tokens]


@dataclass(frozen=True)
class SpecialTokensTemplate:
    """The special tokens that a tokenizer adds to a text or pair of texts, and the token type of each part."""

    prefix: list[int]
    separator: list[int]  # empty for a single text
    suffix: list[int]
    token_types: tuple[list[int], int, list[int], int, list[int]] | None  # None if the model has none
    empty_text: list[int]  # token IDs of an empty text: none, or one if the tokenizer adds no special tokens

    @property
    def num_special_tokens(self) -> int:
        """Number of special tokens in each sequence."""
        return len(self.prefix) + len(self.separator) + len(self.suffix)

    def build_inputs(self, first: list[int], second: list[int] | None = None) -> tuple[list[int], list[int] | None]:
        """Return the token IDs and token type IDs of a sequence with its special tokens."""
        second = second or []
        ids = [*self.prefix, *first, *self.separator, *second, *self.suffix]
        if self.token_types is None:
            return ids, None
        prefix, first_type, separator, second_type, suffix = self.token_types
        return ids, [*prefix, *[first_type] * len(first), *separator, *[second_type] * len(second), *suffix]

    def build_truncated_pair(
        self, first: list[int], second: list[int], max_tokens: int
    ) -> tuple[list[int], list[int] | None]:
        """Build a pair's inputs of at most `max_tokens` tokens plus special ones, truncating the longer text first."""
        num_first, num_second = truncate_pair(len(first), len(second), max_tokens)
        return self.build_inputs(first[:num_first], second[:num_second])


def special_tokens_template(tokenizer: PreTrainedTokenizerBase, *, pair: bool) -> SpecialTokensTemplate:
    """Return the template for single texts or for pairs, derived from how the tokenizer encodes a short example."""
    output = tokenizer("a", "a" if pair else None)
    sequence_ids, ids, types = output.sequence_ids(0), output["input_ids"], output.get("token_type_ids")
    first = [index for index, sequence in enumerate(sequence_ids) if sequence == 0]
    second = [index for index, sequence in enumerate(sequence_ids) if sequence == 1] or [len(ids), len(ids) - 1]
    slices = [slice(0, first[0]), slice(first[-1] + 1, second[0]), slice(second[-1] + 1, len(ids))]
    if not pair:  # everything after the text is the suffix
        slices = [slices[0], slice(0, 0), slices[1]]
    prefix, separator, suffix = (ids[part] for part in slices)
    markers = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    empty_text = [] if prefix or separator or suffix else [token for token in markers if token is not None][:1]
    if types is None:
        return SpecialTokensTemplate(prefix, separator, suffix, None, empty_text)
    second_type = types[second[0]] if pair else 0
    token_types = (types[slices[0]], types[first[0]], types[slices[1]], second_type, types[slices[2]])
    return SpecialTokensTemplate(prefix, separator, suffix, token_types, empty_text)


class EncodedBuilder:
    """A builder that collects sequences one at a time and concatenates them into an `Encoded`."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self._input_ids: list[np.ndarray] = []
        self._token_type_ids: list[np.ndarray] = []

    def add(self, row: int, input_ids: list[int], token_type_ids: list[int] | None) -> None:
        """Add a sequence of dataset row `row`.

        Raises:
            DataError: if the sequence has no tokens.
        """
        if not input_ids:
            raise DataError(f"row {row + 1} is empty, and the tokenizer adds no special tokens; remove the row")
        self.rows.append(row)
        self._input_ids.append(np.asarray(input_ids, dtype=np.int32))
        if token_type_ids is not None:
            self._token_type_ids.append(np.asarray(token_type_ids, dtype=np.int8))

    def build(self, tokenizer: PreTrainedTokenizerBase, labels: np.ndarray | None, **fields: Any) -> Encoded:
        """Build the `Encoded`, with `num_choices` sequences per item (default 1).

        Args:
            fields: further fields of `Encoded`.
        """
        lengths = [len(ids) for ids in self._input_ids]
        return Encoded(
            input_ids=np.concatenate(self._input_ids) if self._input_ids else np.empty(0, np.int32),
            token_type_ids=np.concatenate(self._token_type_ids) if self._token_type_ids else None,
            offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            rows=np.asarray(self.rows[:: fields.get("num_choices", 1)], dtype=np.int64),
            labels=labels,
            pad_token_id=tokenizer.pad_token_id or 0,
            padding_side=tokenizer.padding_side,
            **fields,
        )


def iter_input_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[list[int]]:
    """Yield the token IDs of each text, without special tokens."""
    for start in range(0, len(texts), TOKENIZE_BATCH_SIZE):
        yield from token_ids(tokenizer, list(texts[start : start + TOKENIZE_BATCH_SIZE]))


def iter_kept_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int, long_inputs: LongInputs
) -> Iterator[list[int]]:
    """Yield, for each text, enough token IDs for `split_long_text` to return the same as for the whole text.

    Only the ends of a long text are tokenized, extended until they have `max_tokens` tokens.
    """
    if long_inputs == "windows" or not splits_at_spaces(tokenizer):
        yield from iter_input_ids(tokenizer, texts)
        return
    for start in range(0, len(texts), TOKENIZE_BATCH_SIZE):
        batch = dict(enumerate(texts[start : start + TOKENIZE_BATCH_SIZE]))
        ids: dict[int, list[int]] = {}
        num_characters = CHARACTERS_PER_TOKEN * max_tokens
        while batch:
            ends = {index: _text_ends(text, num_characters, long_inputs) for index, text in batch.items()}
            tokenized = iter(token_ids(tokenizer, list(chain.from_iterable(ends.values()))))
            for index, parts in ends.items():
                part_ids = list(islice(tokenized, len(parts)))
                if parts == [batch[index]] or min(map(len, part_ids)) >= max_tokens:
                    ids[index] = list(chain.from_iterable(part_ids))
                    del batch[index]
            num_characters *= GROWTH_FACTOR
        yield from (ids[index] for index in range(len(ids)))


def kept_pair_ids(
    tokenizer: PreTrainedTokenizerBase, texts: tuple[str, str], ids: tuple[list[int], list[int]], max_tokens: int
) -> tuple[list[int], list[int]]:
    """Return enough token IDs of both texts of a pair for `truncate_pair` to keep the same as of the whole texts.

    The heads of the texts are enough, unless it matters which text is longer: an odd number of tokens is divided
    between two texts that are both too long.

    Args:
        ids: token IDs of the texts, or of their heads, from `iter_kept_ids` with `max_tokens`.
    """
    are_whole = max(map(len, texts)) <= 2 * CHARACTERS_PER_TOKEN * max_tokens
    if are_whole or max_tokens % 2 == 0 or min(map(len, ids)) < max_tokens:
        return ids
    first, second = iter_input_ids(tokenizer, texts)
    return first, second


def _text_ends(text: str, num_characters: int, long_inputs: LongInputs) -> list[str]:
    """Return the whole text, or the ends that `long_inputs` keeps, each of at least about `num_characters`."""
    if len(text) <= 2 * num_characters:
        return [text]
    head, tail = CUT.search(text, num_characters), CUT.search(text, len(text) - num_characters)
    ends = [text[: head.start()] if head else text, text[tail.start() :] if tail else text]
    if long_inputs == "keep_head":
        return ends[:1]
    return ends[1:] if long_inputs == "keep_tail" else ends


def split_at_spaces(text: str, num_characters: int) -> Iterator[str]:
    """Yield the text in parts of at least `num_characters`, cut only at `CUT`, so no word is split."""
    start = 0
    while cut := CUT.search(text, start + num_characters):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def splits_at_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether cutting a text at `CUT` leaves its tokens unchanged.

    That holds if the tokenizer first splits a text into words, and a space belongs to the following word or to none.
    """
    ordinary = [token for token in tokenizer.added_tokens_decoder.values() if not token.special]
    if any(token.rstrip or ENDS_AFTER_CUT.search(token.content) for token in ordinary):
        return False
    output = tokenize(tokenizer, ["a b", "a", " b"])
    both, first, second = output["input_ids"]
    if not first or not second or both != first + second:
        return False
    words = output.word_ids(0)
    return bool(words[len(first) - 1] != words[len(first)])


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Any], **options: Any) -> Any:
    """Call the tokenizer without special tokens, truncation or padding; literal `[SEP]` is ordinary text."""
    options |= {
        "add_special_tokens": False,
        "split_special_tokens": True,
        "truncation": False,
        "padding": False,
        "return_attention_mask": False,
        "return_token_type_ids": False,
        "verbose": False,  # no warning about long texts: they are truncated later
    }
    output = tokenizer(texts, **options)
    if all(map(special_ids(tokenizer).isdisjoint, output["input_ids"])):
        return output
    return without_special_pieces(tokenizer)(texts, **options)


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the token IDs of each text, as `tokenize` does, in half the time: nothing else is computed."""
    if not tokenizer.is_fast:  # written in Python, such as CANINE's
        return tokenize(tokenizer, texts)["input_ids"]
    backend: Any = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # as ordinary text
    ids = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    if all(map(special_ids(tokenizer).isdisjoint, ids)):
        return ids
    return tokenize(tokenizer, texts)["input_ids"]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the IDs of the special tokens that texts must not be tokenized to: all but `[UNK]`."""
    ids = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return ids - {tokenizer.unk_token_id}


@lru_cache(maxsize=4)
def without_special_pieces(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer, with the same IDs, whose model does not find special tokens in texts.

    `split_special_tokens` alone is not enough for a Unigram model, which has the special tokens in its vocabulary (in
    XLM-R's, `</s>` has the best score of all pieces).
    """
    from tokenizers import Tokenizer

    copied = copy.deepcopy(tokenizer)
    backend = copied.backend_tokenizer
    special = {token.content for token in copied.added_tokens_decoder.values() if token.special} - {copied.unk_token}
    state = json.loads(backend.to_str())
    vocab = state["model"]["vocab"]
    if isinstance(vocab, list):  # pieces and scores, indexed by ID
        vocab = [["" if piece in special else piece, score] for piece, score in vocab]
    else:
        vocab = {piece: index for piece, index in vocab.items() if piece not in special}
    state |= {"model": state["model"] | {"vocab": vocab}, "added_tokens": []}
    backend.model = Tokenizer.from_str(json.dumps(state)).model
    return copied


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
    """Encode R texts, or R pairs of texts, as sequences of at most `max_length` tokens, special tokens included.

    Args:
        texts: R first texts.
        pairs: R second texts, or None. Pairs that are too long are truncated at the end, the longer text first.
        labels: [R] or [R, C]; each window of a row gets the row's label.
        long_inputs: how to handle single texts that are too long.
        doc_stride: number of tokens shared by consecutive windows; None: a third of a window.
    """
    template, builder = special_tokens_template(tokenizer, pair=pairs is not None), EncodedBuilder()
    max_tokens = max_length - template.num_special_tokens
    if pairs is None:
        for row, ids in enumerate(iter_kept_ids(tokenizer, texts, max_tokens, long_inputs)):
            for part in split_long_text(ids or template.empty_text, max_tokens, long_inputs, doc_stride):
                builder.add(row, *template.build_inputs(part))
    else:
        heads = (iter_kept_ids(tokenizer, part, max_tokens, "keep_head") for part in (texts, pairs))
        for row, ids_of_pair in enumerate(zip(*heads, strict=True)):
            first, second = kept_pair_ids(tokenizer, (texts[row], pairs[row]), ids_of_pair, max_tokens)
            first = first if first or second else template.empty_text
            builder.add(row, *template.build_truncated_pair(first, second, max_tokens))
    return builder.build(tokenizer, None if labels is None else labels[builder.rows])


def split_long_text(
    ids: list[int], max_tokens: int, long_inputs: LongInputs, doc_stride: int | None
) -> Iterator[list[int]]:
    """Yield the text truncated to `max_tokens`, or overlapping windows that cover it, depending on `long_inputs`."""
    if len(ids) <= max_tokens or long_inputs == "keep_head":
        yield ids[:max_tokens]
    elif long_inputs == "keep_tail":
        yield ids[len(ids) - max_tokens :]
    elif long_inputs == "keep_head_and_tail":
        num_head = max_tokens // 4  # as in Sun et al. 2019 (128 of 510), https://arxiv.org/abs/1905.05583
        yield ids[:num_head] + ids[len(ids) - (max_tokens - num_head) :]
    else:
        yield from (ids[start:end] for start, end in window_bounds(len(ids), max_tokens, doc_stride))


def truncate_pair(first: int, second: int, max_tokens: int) -> tuple[int, int]:
    """Return the number of tokens to keep of each text of a pair with `first` and `second` tokens.

    Follows the tokenizers' `longest_first` strategy.
    """
    shorter, longer = sorted((first, second))
    if shorter + longer > max_tokens:
        longer = max(shorter, max_tokens - shorter)
        if shorter + longer > max_tokens:
            shorter, longer = max_tokens // 2, max_tokens - max_tokens // 2
    return (shorter, longer) if first <= second else (longer, shorter)


def window_bounds(length: int, window_size: int, doc_stride: int | None) -> list[tuple[int, int]]:
    """Return the start and end of each window of at most `window_size` tokens over a text of `length` tokens.

    Args:
        doc_stride: number of tokens shared by consecutive windows; None: a third of a window.

    Raises:
        DataError: if `doc_stride` is not smaller than the window.
    """
    if length <= window_size:
        return [(0, length)]
    if doc_stride is None:
        doc_stride = window_size // 3
    if doc_stride >= window_size:
        raise DataError(
            f"data.doc_stride is {doc_stride}, expected less than the window of {window_size} tokens; set a smaller "
            "doc_stride or a larger data.max_length"
        )
    starts = range(0, length - doc_stride, window_size - doc_stride)
    return [(start, min(start + window_size, length)) for start in starts]
