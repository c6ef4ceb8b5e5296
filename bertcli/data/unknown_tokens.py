"""Find the words or characters of texts that a tokenizer replaces by its unknown token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from bertcli.data.encoding import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_SIZE = 1000  # texts tokenized at once


def count_unknown_parts(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Counter[str]:
    """Count the parts of texts that become the unknown token: words in WordPiece, mostly characters in others.

    It is empty if the tokenizer has no unknown token, or does not return offsets because it is written in Python.
    """
    counts = Counter[str]()
    unknown = tokenizer.unk_token_id
    if unknown is None or not tokenizer.is_fast:
        return counts
    iterator = iter(texts)
    while batch := list(islice(iterator, BATCH_SIZE)):
        output = tokenize(tokenizer, batch, return_offsets_mapping=True)
        for text, ids, offsets in zip(batch, output["input_ids"], output["offset_mapping"], strict=True):
            counts.update(
                text[start:end].strip() for index, (start, end) in zip(ids, offsets, strict=True) if index == unknown
            )
    del counts[""]
    return counts
