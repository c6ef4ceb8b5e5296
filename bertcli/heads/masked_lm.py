"""Guess masked tokens from both sides (Devlin et al. 2019), and whether two texts belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.data.encoding import IGNORED_LABEL, Encoded, Sequences
from bertcli.data.masking import Replacement, choose, replace
from bertcli.data.packing import Packed
from bertcli.errors import ModelError
from bertcli.heads.objective import Objective, Text, measure_tokens, random_token_ids
from bertcli.recipe.pretrain import ObjectiveSection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

PAIR_TARGET = "next_sentence_label"


@dataclass(frozen=True)
class MaskedSequences:
    """Masked sequences, with the labels of their pairs if they are pairs."""

    encoded: Encoded | Packed
    pair_labels: np.ndarray | None  # [N]

    def packed(self, rows: list[np.ndarray], first_position: int) -> MaskedSequences:
        """The same with several sequences in a row, positions counted from `first_position` in each."""
        assert isinstance(self.encoded, Encoded)
        return MaskedSequences(Packed(self.encoded, rows, first_position), None)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each sequence. [N]"""
        return self.encoded.sizes

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence. [N]"""
        return self.encoded.lengths

    @cached_property
    def counts(self) -> dict[str, int]:
        """Masked tokens, and pairs."""
        counts = {"labels": max(1, int(self.encoded.num_targets.sum()))}
        return counts if self.pair_labels is None else counts | {PAIR_TARGET: len(self.pair_labels)}

    def batch(self, items: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """Inputs, labels [B, S] and pair labels [B]."""
        import torch

        tensors = self.encoded.batch(items, multiple_of)
        tensors["asked"] = tensors["labels"] != IGNORED_LABEL
        if self.pair_labels is not None:
            tensors[PAIR_TARGET] = torch.from_numpy(self.pair_labels[items])
        return tensors


class MaskedLM(Objective):
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

    def ask(self, texts: Sequence[Text], random: np.random.Generator) -> MaskedSequences:
        """Each text with some of its tokens hidden; special tokens never are."""
        pair_labels = None
        if self.section.pairs is not None:
            pair_labels = np.asarray([text.pair_label for text in texts], dtype=np.int64)
        return MaskedSequences(mask_texts(self, texts, random), pair_labels)

    def loss(self, outputs: Any, targets: dict[str, torch.Tensor], counts: dict[str, int]) -> torch.Tensor:
        """Cross-entropy of the masked tokens, plus that of the pairs."""
        from torch.nn import functional

        logits = _token_logits(outputs).float()
        loss = functional.cross_entropy(logits, targets["labels"], reduction="sum") / counts["labels"]
        if PAIR_TARGET in targets:
            pair_logits = outputs.seq_relationship_logits.float()
            pairs = functional.cross_entropy(pair_logits, targets[PAIR_TARGET], reduction="sum")
            loss = loss + pairs / counts[PAIR_TARGET]
        return loss

    @property
    def score_names(self) -> tuple[str, ...]:
        """Those of tokens, and of pairs."""
        return (*super().score_names, *(["pair_accuracy"] if self.section.pairs else []))

    def measure(self, outputs: Any, targets: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        """Loss and accuracy on masked tokens, accuracy on pairs."""
        scores = measure_tokens(_token_logits(outputs), targets["labels"])
        if PAIR_TARGET in targets:
            hits = outputs.seq_relationship_logits.argmax(-1) == targets[PAIR_TARGET]
            scores["pair_accuracy"] = (float(hits.sum()), len(hits))
        return scores


def mask_texts(objective: MaskedLM, texts: Sequence[Text], random: np.random.Generator) -> Encoded:
    """The texts with special tokens around them and some of their own hidden, which are the labels."""
    encoded, maskable, starts = frame_texts(objective, texts)
    section = objective.section
    groups = choose(maskable, starts, encoded.offsets, section.mlm_probability, section.unit, random)
    ids, labels = replace(encoded.input_ids, groups, objective.replacement, random)
    return encoded.with_labels(ids, labels)


def frame_texts(objective: Objective, texts: Sequence[Text]) -> tuple[Encoded, np.ndarray, np.ndarray]:
    """The texts with special tokens around them; which tokens are not special [T], and which begin a word [T].

    Special, too, are unknown tokens in the text: there is nothing to guess.
    """
    frame, made = objective.frame, Sequences()
    starts: list[np.ndarray] = []
    before, between, after = (np.zeros(len(part), bool) for part in (frame.before, frame.between, frame.after))
    for row, text in enumerate(texts):
        made.add(row, *frame.join(text.first.tolist(), text.second.tolist()))
        starts += [before, text.first_starts, between, text.second_starts, after]
    encoded = made.encoded(objective.tokenizer, None)
    is_special = np.isin(encoded.input_ids, np.asarray(objective.tokenizer.all_special_ids))
    return encoded, ~is_special, np.concatenate(starts).astype(bool)


def _token_logits(outputs: Any) -> torch.Tensor:
    """The logits of tokens in the output of a masked-language model or of one for pretraining."""
    return outputs.prediction_logits if "prediction_logits" in outputs else outputs.logits
