"""Say what lost spans held (T5, Raffel et al. 2020, https://arxiv.org/abs/1910.10683), for encoder-decoder models.

Each lost span leaves one sentinel in the text; the answer is each sentinel with its span behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.data.encoding import IGNORED_LABEL, Encoded, Sequences
from bertcli.errors import ModelError
from bertcli.pretraining.objective import Text, TokenObjective
from bertcli.recipe.pretrain_schema import ObjectiveSection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class CorruptedSequences:
    """Texts with lost spans, and the answers."""

    source: Encoded
    answer: Encoded

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each text and its answer. [N]"""
        return self.source.sizes + self.answer.sizes

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text. [N]"""
        return self.source.lengths

    @cached_property
    def counts(self) -> dict[str, int]:
        """Tokens of all answers."""
        return {"labels": max(1, len(self.answer.input_ids))}

    def batch(self, items: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """Inputs [B, S], labels [B, S'] and what the decoder has read before each of them."""
        tensors = self.source.batch(items, multiple_of)
        labels = self.answer.batch(items, multiple_of)["labels"]
        decoder_ids = labels.new_full(labels.shape, self.answer.pad_token_id)
        decoder_ids[:, 1:] = labels[:, :-1].clamp(min=0)
        return tensors | {"labels": labels, "decoder_input_ids": decoder_ids, "asked": labels != IGNORED_LABEL}


class SpanCorruption(TokenObjective):
    """Lost spans of `mean_span_length` tokens on average, `mlm_probability` of the text in all."""

    model_class = "AutoModelForSeq2SeqLM"

    def __init__(self, section: ObjectiveSection, tokenizer: PreTrainedTokenizerBase):
        super().__init__(section, tokenizer)
        known = tokenizer.get_vocab()
        names = [f"<extra_id_{number}>" for number in range(len(known))]
        self.sentinels = [known[name] for name in names if name in known]
        if not self.sentinels:
            raise ModelError("the tokenizer has no <extra_id_0> …, which mark lost spans; learn one from the corpus")

    def config_fields(self) -> dict[str, Any]:
        """The decoder starts from padding, as T5's."""
        return {"decoder_start_token_id": self.tokenizer.pad_token_id}

    def ask(self, texts: Sequence[Text], random: np.random.Generator) -> CorruptedSequences:
        """Each text with spans taken out."""
        source, answer = Sequences(), Sequences()
        for row, text in enumerate(texts):
            lost = lose_spans(
                len(text.first),
                self.section.mlm_probability,
                self.section.mean_span_length,
                len(self.sentinels),
                random,
            )
            kept, said = corrupt(text.first, lost, self.sentinels)
            source.add(row, *self.frame.join(kept.tolist()))
            answer.add(row, [*said.tolist(), *self.frame.after], None)
        answers = answer.encoded(self.tokenizer, None)
        labelled = answers.with_labels(answers.input_ids, answers.input_ids.astype(np.int64))
        return CorruptedSequences(source.encoded(self.tokenizer, None), labelled)


def lose_spans(
    length: int, share: float, mean_span_length: float, most: int, random: np.random.Generator
) -> np.ndarray:
    """Which of `length` tokens are lost: `share` of them, in spans with a kept token before each. [length] bool

    Lost and kept tokens are each divided at random into as many parts as there are spans (T5's own way).
    """
    num_lost = int(share * length + random.random())  # the remainder by chance, so that the share holds on average
    num_spans = min(max(1, round(num_lost / mean_span_length)), most, num_lost, length - num_lost)
    if num_spans < 1:
        return np.zeros(length, dtype=bool)
    kept, lost = _divide(length - num_lost, num_spans, random), _divide(num_lost, num_spans, random)
    lengths = np.stack((kept, lost), axis=1).ravel()
    return np.repeat(np.tile([False, True], num_spans), lengths)


def _divide(number: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """`number` as a sum of `parts` numbers of at least 1, any such sum as likely as another."""
    cuts = np.sort(random.choice(number - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=number)


def corrupt(ids: np.ndarray, lost: np.ndarray, sentinels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The text with a sentinel for each lost span, and the answer: each sentinel with its span."""
    begins = lost & ~np.concatenate(([False], lost[:-1]))
    marks = np.asarray(sentinels)[np.cumsum(begins) - 1]
    kept = np.where(begins, marks, ids)[~lost | begins]
    places = np.flatnonzero(lost)
    said = np.insert(ids[places], np.flatnonzero(begins[places]), marks[begins])
    return kept, said
