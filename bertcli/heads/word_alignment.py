"""The words of a row, their characters, and the tokens they begin with. Shapes: R rows, T tokens of all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from bertcli.data.encoding import TEXTS_AT_ONCE, tokenize
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

WORD = re.compile(r"\w+(?:['’.&/-]\w+)*|[^\w\s]")
NO_WORD = -1  # place of a token that answers for no word


def words_of(task: Task, rows: Dataset) -> list[list[str]]:
    """The words of each row: as they are given, or cut from a plain text at spaces and punctuation."""
    return [WORD.findall(row) if isinstance(row, str) else row for row in rows[task.text_columns[0]][:]]


def spans_of(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Where each word stands in the text: first character and the one after the last."""
    spans, at = [], 0
    for word in words:
        start = text.index(word, at)
        at = start + len(word)
        spans.append((start, at))
    return spans


def tokens_of_words(
    tokenizer: PreTrainedTokenizerBase, all_words: list[list[str]]
) -> tuple[list[int], list[int], list[int]]:
    """The token ids of all rows' words, for each token the word of its row that it begins (`NO_WORD`: it goes on with
    one), and where each row begins, with the end of the last. [T], [T], [R + 1]
    """
    ids: list[int] = []
    first_of: list[int] = []
    bounds = [0]
    for start in range(0, len(all_words), TEXTS_AT_ONCE):
        part = all_words[start : start + TEXTS_AT_ONCE]
        output = tokenize(tokenizer, part, is_split_into_words=True)
        for at, words in enumerate(part):
            encoded = output["input_ids"][at], output.word_ids(at)
            some_ids, some_marks = _with_every_word(*encoded, len(words), tokenizer.unk_token_id)
            ids += some_ids
            first_of += some_marks
            bounds.append(len(ids))
    return ids, first_of, bounds


def capitals_of(all_words: list[list[str]], first_of: list[int], bounds: list[int]) -> list[int]:
    """1 for each token of a word with a capital letter, 0 for the others, from what `tokens_of_words` gave. [T]"""
    marks: list[int] = []
    for words, (start, end) in zip(all_words, pairwise(bounds), strict=True):
        has_capital = [int(any(letter.isupper() for letter in word)) for word in words]
        for word in first_of[start:end]:
            marks.append(marks[-1] if word == NO_WORD else has_capital[word])
    return marks


def _with_every_word(
    ids: list[int], word_of: list[int], num_words: int, unknown: int | None
) -> tuple[list[int], list[int]]:
    """Ids and first-token marks; a word the tokenizer makes nothing of (a lone control character) becomes unknown."""
    first_of = [word if at == 0 or word_of[at - 1] != word else NO_WORD for at, word in enumerate(word_of)]
    if len(missing := set(range(num_words)) - set(word_of)) == 0:
        return ids, first_of
    pieces: dict[int, list[int]] = {word: [unknown or 0] for word in missing}
    for token, word in zip(ids, word_of, strict=True):
        pieces.setdefault(word, []).append(token)
    ordered = [
        (token, word if at == 0 else NO_WORD) for word in range(num_words) for at, token in enumerate(pieces[word])
    ]
    return [token for token, _ in ordered], [word for _, word in ordered]
