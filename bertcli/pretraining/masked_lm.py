"""Guess masked tokens from both sides (Devlin et al. 2019), and whether two texts belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.data.encoding import Encoded
from bertcli.data.masking import Replacement, choose, replace
from bertcli.errors import ModelError
from bertcli.pretraining.objective import AskedTokens, Text, TokenObjective, random_token_ids
from bertcli.recipe.pretrain_schema import ObjectiveSection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

PAIR_TARGET = "next_sentence_label"


@dataclass(frozen=True)
class AskedPairs(AskedTokens):
    """Pairs of texts some of whose tokens are asked for, and whether they belong together."""

    pair_labels: np.ndarray  # [N]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Asked tokens, and pairs."""
        return super().counts | {PAIR_TARGET: len(self.pair_labels)}

    def batch(self, items: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """Inputs, labels [B, S] and pair labels [B]."""
        import torch

        return super().batch(items, multiple_of) | {PAIR_TARGET: torch.from_numpy(self.pair_labels[items])}


class MaskedLM(TokenObjective):
    """Masked tokens, whole words or spans; with `pairs`, also next-sentence prediction or sentence order."""

    model_class = "AutoModelForMaskedLM"

    def __init__(self, section: ObjectiveSection, tokenizer: PreTrainedTokenizerBase):
        super().__init__(section, tokenizer)
        if tokenizer.mask_token_id is None:
            raise ModelError("the tokenizer has no mask token, which the objective masked_lm needs; name another")
        if section.pairs is not None:
            self.model_class = "AutoModelForPreTraining"  # type: ignore[misc]
        self.replacement = Replacement(
            tokenizer.mask_token_id, random_token_ids(tokenizer), section.mask_share, section.random_share
        )

    def ask(self, texts: Sequence[Text], random: np.random.Generator) -> AskedTokens:
        """Each text with some of its tokens hidden; special tokens never are."""
        masked = self.mask(texts, random)
        if self.section.pairs is None:
            return AskedTokens(masked)
        return AskedPairs(masked, np.asarray([text.pair_label for text in texts], dtype=np.int64))

    def mask(self, texts: Sequence[Text], random: np.random.Generator) -> Encoded:
        """The texts with special tokens around them and some of their own hidden, which are the labels."""
        encoded, maskable, starts = self.framed(texts)
        section = self.section
        groups = choose(maskable, starts, encoded.offsets, section.mlm_probability, section.unit, random)
        return encoded.with_labels(*replace(encoded.input_ids, groups, self.replacement, random))

    def loss(self, outputs: Any, targets: dict[str, torch.Tensor], counts: dict[str, int]) -> torch.Tensor:
        """Cross-entropy of the masked tokens, plus that of the pairs."""
        from torch.nn import functional

        loss = super().loss(outputs, targets, counts)
        if PAIR_TARGET in targets:
            pair_logits = _pair_logits(outputs).float()
            pairs = functional.cross_entropy(pair_logits, targets[PAIR_TARGET], reduction="sum")
            loss = loss + pairs / counts[PAIR_TARGET]
        return loss

    @property
    def score_names(self) -> tuple[str, ...]:
        """Those of tokens, and of pairs."""
        return (*super().score_names, *(["pair_accuracy"] if self.section.pairs else []))

    def measure(self, outputs: Any, targets: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        """Loss and accuracy on masked tokens, accuracy on pairs."""
        scores = super().measure(outputs, targets)
        if PAIR_TARGET in targets:
            hits = _pair_logits(outputs).argmax(-1) == targets[PAIR_TARGET]
            scores["pair_accuracy"] = (float(hits.sum()), len(hits))
        return scores


def _pair_logits(outputs: Any) -> torch.Tensor:
    """[B, 2], as BERT and most others name them, or ALBERT. (A model's output is a mapping.)"""
    return outputs["seq_relationship_logits" if "seq_relationship_logits" in outputs else "sop_logits"]
