"""Span corruption for encoder-decoder models (T5, Raffel et al. 2020, https://arxiv.org/abs/1910.10683).

In the input, a sentinel token replaces each masked span. The target is the sequence of sentinels, each followed by the
tokens of its span. Shapes: N texts, B texts of a batch, S length of the longest input, L of the longest target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.data.encoding import IGNORED_LABEL, Encoded, EncodedBuilder
from bertcli.errors import ModelError
from bertcli.pretraining.objective import Text, TokenObjective
from bertcli.recipe.pretrain_schema import ObjectiveSection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SpanTargets:
    """Corrupted texts and their target sequences."""

    inputs: Encoded
    targets: Encoded  # labels are the token ids

    @property
    def num_tokens(self) -> np.ndarray:
        """Number of tokens in each input plus its target. [N]"""
        return self.inputs.num_tokens + self.targets.num_tokens

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens in each input. [N]"""
        return self.inputs.lengths

    @cached_property
    def num_targets(self) -> dict[str, int]:
        """Number of tokens in all target sequences, at least 1."""
        return {"labels": max(1, len(self.targets.input_ids))}

    def batch(self, items: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """Collate inputs [B, S], and labels and decoder inputs [B, L]: the labels shifted right by one token."""
        tensors = self.inputs.batch(items, multiple_of)
        labels = self.targets.batch(items, multiple_of)["labels"]
        decoder_input_ids = labels.new_full(labels.shape, self.targets.pad_token_id)
        decoder_input_ids[:, 1:] = labels[:, :-1].clamp(min=0)
        return tensors | {
            "labels": labels,
            "decoder_input_ids": decoder_input_ids,
            "target_positions": labels != IGNORED_LABEL,
        }


class SpanCorruption(TokenObjective):
    """Predict masked spans of `mean_span_length` tokens on average, a fraction `mlm_probability` of all tokens."""

    model_class = "AutoModelForSeq2SeqLM"
    pipeline_tag = "text2text-generation"
    supported_keys = frozenset({"mlm_probability", "mean_span_length"})
    needs_sentinels = True

    def __init__(self, section: ObjectiveSection, tokenizer: PreTrainedTokenizerBase):
        super().__init__(section, tokenizer)
        vocab = tokenizer.get_vocab()
        names = [f"<extra_id_{number}>" for number in range(len(vocab))]
        self.sentinels = [vocab[name] for name in names if name in vocab]
        if not self.sentinels:
            raise ModelError(
                "the tokenizer has no sentinel tokens (<extra_id_0> …), which span_corruption requires; choose a T5 "
                "tokenizer, or train one with tokenizer.name=null"
            )

    def config_fields(self) -> dict[str, Any]:
        """Return the start token of the decoder: the padding token, as in T5."""
        return {"decoder_start_token_id": self.tokenizer.pad_token_id}

    def build_targets(self, texts: Sequence[Text], random: np.random.Generator) -> SpanTargets:
        """Corrupt spans of each text."""
        section, inputs, targets = self.section, EncodedBuilder(), EncodedBuilder()
        for row, text in enumerate(texts):
            span_mask = sample_span_mask(
                len(text.first), section.mlm_probability, section.mean_span_length, len(self.sentinels), random
            )
            input_ids, target_ids = corrupt_spans(text.first, span_mask, self.sentinels)
            inputs.add(row, *self.template.build_inputs(input_ids.tolist()))
            targets.add(row, [*target_ids.tolist(), *self.template.suffix], None)
        encoded = targets.build(self.tokenizer, None)
        labeled = encoded.with_labels(encoded.input_ids, encoded.input_ids.astype(np.int64))
        return SpanTargets(inputs.build(self.tokenizer, None), labeled)


def sample_span_mask(
    length: int, mask_fraction: float, mean_span_length: float, max_spans: int, random: np.random.Generator
) -> np.ndarray:
    """Sample which of `length` tokens are masked, in spans with an unmasked token before each. [length] bool

    As in T5, the masked and the unmasked tokens are each divided at random into as many segments as there are spans.
    """
    num_masked = int(mask_fraction * length + random.random())  # stochastic rounding: exact on average
    num_spans = min(max(1, round(num_masked / mean_span_length)), max_spans, num_masked, length - num_masked)
    if num_spans < 1:
        return np.zeros(length, dtype=bool)
    unmasked_lengths = _random_segment_lengths(length - num_masked, num_spans, random)
    masked_lengths = _random_segment_lengths(num_masked, num_spans, random)
    segment_lengths = np.stack((unmasked_lengths, masked_lengths), axis=1).ravel()
    return np.repeat(np.tile([False, True], num_spans), segment_lengths)


def _random_segment_lengths(num_tokens: int, num_segments: int, random: np.random.Generator) -> np.ndarray:
    """Divide `num_tokens` into segments of at least one token; all divisions are equally likely."""
    cuts = np.sort(random.choice(num_tokens - 1, num_segments - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=num_tokens)


def corrupt_spans(ids: np.ndarray, span_mask: np.ndarray, sentinels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the text with each masked span replaced by a sentinel, and the target: each sentinel with its span."""
    span_starts = span_mask & ~np.concatenate(([False], span_mask[:-1]))
    sentinel_ids = np.asarray(sentinels)[np.cumsum(span_starts) - 1]
    input_ids = np.where(span_starts, sentinel_ids, ids)[~span_mask | span_starts]
    masked_positions = np.flatnonzero(span_mask)
    insert_at = np.flatnonzero(span_starts[masked_positions])
    target_ids = np.insert(ids[masked_positions], insert_at, sentinel_ids[span_starts])
    return input_ids, target_ids
