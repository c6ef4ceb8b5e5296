"""Masks in texts are masks; other special tokens that a text holds are text."""

from __future__ import annotations

from typing import Any

import pytest

from bertcli.data.encoding import encode_texts
from bertcli.inference.fill_mask import with_masks_in_texts
from bertcli.models.tokenizer_training import train_tokenizer

from ..conftest import TEXTS


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_only_masks_written_in_a_text_are_special_tokens(kind: Any) -> None:
    tokenizer = train_tokenizer(lambda: [*TEXTS, "< / s > [ ] SEP"], 120, kind, lowercase=False)
    mask, sep = tokenizer.mask_token_id, tokenizer.sep_token_id
    text = f"a {tokenizer.mask_token} film [SEP] </s>{tokenizer.mask_token}"
    ids = encode_texts(with_masks_in_texts(tokenizer), [text], None, 64).input_ids.tolist()
    assert (ids.count(mask), ids.count(sep), ids[-1]) == (2, 1, sep)
    plain = f"a {tokenizer.mask_token} film"
    ids = encode_texts(with_masks_in_texts(tokenizer), [plain], None, 64).input_ids.tolist()
    assert ids == tokenizer(plain)["input_ids"]
    assert mask not in encode_texts(tokenizer, [text], None, 64).input_ids
