"""Words of a row, their character offsets, and their alignment with tokens.

Shapes: R rows, T tokens in all rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from bertcli.data.encoding import TOKENIZE_BATCH_SIZE, tokenize
from bertcli.data.spans import SPAN_WORD_PATTERN
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

WORD_PATTERN = re.compile(r"\w+(?:['’.&/-]\w+)*|[^\w\s]")
UNALIGNED = -1  # alignment of a token that is not used to predict a word's tag


def word_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return the pattern of words in plain texts: `WORD_PATTERN`, but tokens added to the vocabulary stay whole.

    In a list of words, `[DRUG]` is one word, and the tokenizer finds it; in `[`, `DRUG` and `]` it would not.
    """
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    ignores_case = normalizer is not None and normalizer.normalize_str("A") == "a"
    patterns = []
    for token in sorted(tokenizer.added_tokens_decoder.values(), key=lambda token: -len(token.content)):
        if token.special or re.search(r"\s", token.content) or WORD_PATTERN.fullmatch(token.content):
            continue  # special tokens are ordinary text
        pattern = re.escape(token.content)
        if token.single_word:
            pattern = rf"(?<!\w){pattern}(?!\w)"
        patterns.append(f"(?i:{pattern})" if token.normalized and ignores_case else pattern)
    return re.compile("|".join([*patterns, WORD_PATTERN.pattern])) if patterns else WORD_PATTERN


def row_words(task: Task, rows: Dataset, pattern: re.Pattern[str] = WORD_PATTERN) -> list[list[str]]:
    """Return the words of each row; plain texts are split at whitespace and punctuation.

    Args:
        pattern: of words in plain texts, unless the task has spans, whose texts are always split in the same way.
    """
    pattern = pattern if task.span_column is None else SPAN_WORD_PATTERN
    return [pattern.findall(row) if isinstance(row, str) else row for row in rows[task.text_columns[0]][:]]


def word_offsets(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Return the character offsets of each word in the text: start, and end (exclusive)."""
    offsets, end = [], 0
    for word in words:
        start = text.index(word, end)
        end = start + len(word)
        offsets.append((start, end))
    return offsets


def tokenize_words(
    tokenizer: PreTrainedTokenizerBase, all_words: list[list[str]]
) -> tuple[list[int], list[int], list[int]]:
    """Tokenize the words of all rows.

    Returns:
        The token IDs [T]; the word alignment [T]: the index, within its row, of the word that a token begins, or
        `UNALIGNED` for a word's other tokens; the row bounds [R + 1]: the first token of each row, and the end of the
        last row.
    """
    ids: list[int] = []
    alignment: list[int] = []
    bounds = [0]
    for start in range(0, len(all_words), TOKENIZE_BATCH_SIZE):
        chunk = all_words[start : start + TOKENIZE_BATCH_SIZE]
        output = tokenize(tokenizer, chunk, is_split_into_words=True)
        for index, words in enumerate(chunk):
            encoded = output["input_ids"][index], output.word_ids(index)
            row_ids, row_alignment = _align_words(*encoded, len(words), tokenizer.unk_token_id)
            ids += row_ids
            alignment += row_alignment
            bounds.append(len(ids))
    return ids, alignment, bounds


def casing_token_type_ids(all_words: list[list[str]], alignment: list[int], bounds: list[int]) -> list[int]:
    """Return token type IDs [T]: 1 for each token of a word that contains a capital letter, else 0.

    Args:
        alignment: word alignment returned by `tokenize_words`, as is `bounds`.
    """
    token_type_ids: list[int] = []
    for words, (start, end) in zip(all_words, pairwise(bounds), strict=True):
        has_capital = [int(any(letter.isupper() for letter in word)) for word in words]
        for word in alignment[start:end]:
            token_type_ids.append(token_type_ids[-1] if word == UNALIGNED else has_capital[word])
    return token_type_ids


def _align_words(
    ids: list[int], word_ids: list[int], num_words: int, unk_token_id: int | None
) -> tuple[list[int], list[int]]:
    """Return token IDs and word alignment; words without tokens (control characters) become the unknown token."""
    alignment = [
        word if index == 0 or word_ids[index - 1] != word else UNALIGNED for index, word in enumerate(word_ids)
    ]
    missing = set(range(num_words)) - set(word_ids)
    if not missing:
        return ids, alignment
    tokens_by_word: dict[int, list[int]] = {word: [unk_token_id or 0] for word in missing}
    for token, word in zip(ids, word_ids, strict=True):
        tokens_by_word.setdefault(word, []).append(token)
    aligned = [
        (token, word if index == 0 else UNALIGNED)
        for word in range(num_words)
        for index, token in enumerate(tokens_by_word[word])
    ]
    return [token for token, _ in aligned], [word for _, word in aligned]
