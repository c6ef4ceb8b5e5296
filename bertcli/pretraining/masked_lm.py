"""Masked language modeling (Devlin et al. 2019), optionally with next-sentence or sentence-order prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.data.encoding import Encoded
from bertcli.data.masking import MaskReplacement, apply_mask, sample_mask
from bertcli.errors import ModelError
from bertcli.pretraining.objective import Text, TokenObjective, TokenTargets, random_token_ids
from bertcli.recipe.pretrain_schema import ObjectiveSection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

PAIR_LABELS = "next_sentence_label"  # transformers' name


@dataclass(frozen=True)
class PairTargets(TokenTargets):
    """Masked sentence pairs with their token labels and pair labels."""

    pair_labels: np.ndarray  # [N]

    @cached_property
    def num_targets(self) -> dict[str, int]:
        """Number of target tokens and number of pairs."""
        return super().num_targets | {PAIR_LABELS: len(self.pair_labels)}

    def batch(self, items: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """Collate inputs and labels [B, S], and pair labels [B]."""
        import torch

        return super().batch(items, multiple_of) | {PAIR_LABELS: torch.from_numpy(self.pair_labels[items])}


class MaskedLM(TokenObjective):
    """Predict masked tokens, whole words or spans; with `pairs`, also classify sentence pairs."""

    model_class = "AutoModelForMaskedLM"
    pipeline_tag = "fill-mask"
    has_pipeline = True
    supported_keys = frozenset({"mlm_probability", "masking", "mask_replace_prob", "random_replace_prob"})
    supports_pairs = True
    supports_packing = True

    def __init__(self, section: ObjectiveSection, tokenizer: PreTrainedTokenizerBase):
        super().__init__(section, tokenizer)
        if tokenizer.mask_token_id is None:
            raise ModelError(
                f"the tokenizer has no mask token, which the objective {section.kind} requires; choose another "
                "tokenizer.name"
            )
        if section.pairs is not None:
            self.model_class = "AutoModelForPreTraining"  # type: ignore[misc]
        self.replacement = MaskReplacement(
            tokenizer.mask_token_id, random_token_ids(tokenizer), section.mask_replace_prob, section.random_replace_prob
        )

    def build_targets(self, texts: Sequence[Text], random: np.random.Generator) -> TokenTargets:
        """Mask some tokens of each text."""
        masked = self.mask(texts, random)
        if self.section.pairs is None:
            return TokenTargets(masked)
        return PairTargets(masked, np.asarray([text.pair_label for text in texts], dtype=np.int64))

    def mask(self, texts: Sequence[Text], random: np.random.Generator) -> Encoded:
        """Add special tokens to the texts, and mask some of the other tokens; the labels are the original tokens."""
        encoded, maskable, word_starts = self.with_special_tokens(texts)
        section = self.section
        groups = sample_mask(maskable, word_starts, encoded.offsets, section.mlm_probability, section.masking, random)
        return encoded.with_labels(*apply_mask(encoded.input_ids, groups, self.replacement, random))

    def loss(self, outputs: Any, targets: dict[str, torch.Tensor], num_targets: dict[str, int]) -> torch.Tensor:
        """Compute the cross-entropy of the masked tokens plus, with `pairs`, that of the pair labels."""
        from torch.nn import functional

        loss = super().loss(outputs, targets, num_targets)
        if PAIR_LABELS in targets:
            pair_logits = _pair_logits(outputs).float()
            pair_loss = functional.cross_entropy(pair_logits, targets[PAIR_LABELS], reduction="sum")
            loss = loss + pair_loss / num_targets[PAIR_LABELS]
        return loss

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the held-out scores, with `pair_accuracy` if texts are pairs."""
        return (*super().score_names, *(["pair_accuracy"] if self.section.pairs else []))

    def score_batch(self, outputs: Any, targets: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        """Return loss and accuracy over masked tokens, and accuracy over pairs."""
        scores = super().score_batch(outputs, targets)
        if PAIR_LABELS in targets:
            correct = _pair_logits(outputs).argmax(-1) == targets[PAIR_LABELS]
            scores["pair_accuracy"] = (float(correct.sum()), len(correct))
        return scores


def _pair_logits(outputs: Any) -> torch.Tensor:
    """Return the pair logits [B, 2], which ALBERT calls `sop_logits`. Model outputs are mappings."""
    return outputs["seq_relationship_logits" if "seq_relationship_logits" in outputs else "sop_logits"]
