"""The interface of a pretraining objective: from plain text to inputs and targets, the loss and the held-out scores.

Shapes: N sequences, T tokens of all sequences together, B sequences of a batch, S length of its longest sequence, M
target tokens of a batch, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from bertcli.data.batching import Batchable
from bertcli.data.encoding import IGNORED_LABEL, Encoded, EncodedBuilder, SpecialTokensTemplate, special_tokens_template
from bertcli.data.packing import PackedSequences
from bertcli.recipe.pretrain_schema import ObjectiveSection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Text:
    """A tokenized text or pair of texts from the corpus, without special tokens; `second` is empty for single texts."""

    first: np.ndarray  # token ids
    first_word_starts: np.ndarray  # whether each token starts a word
    second: np.ndarray
    second_word_starts: np.ndarray
    pair_label: int | None  # None for single texts


class TargetSequences(Batchable, Protocol):
    """Sequences with their training targets, of any kind, ready to be collated into batches."""

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens in each sequence that count for padding. [N]"""

    @property
    def num_targets(self) -> dict[str, int]:
        """Number of targets of each kind, over all sequences; the keys are the names of the target tensors."""


@dataclass(frozen=True)
class TokenTargets:
    """Sequences with labels for their target tokens."""

    encoded: Encoded | PackedSequences

    def packed(self, rows: list[np.ndarray], first_position_id: int) -> TokenTargets:
        """Pack the sequences into rows; each sequence's position ids start at `first_position_id`."""
        assert isinstance(self.encoded, Encoded)
        return TokenTargets(PackedSequences(self.encoded, rows, first_position_id))

    @property
    def num_tokens(self) -> np.ndarray:
        """Number of tokens in each sequence, or in each row of packed sequences. [N]"""
        return self.encoded.num_tokens

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens in each sequence, or in each row of packed sequences. [N]"""
        return self.encoded.lengths

    @cached_property
    def num_targets(self) -> dict[str, int]:
        """Number of target tokens, at least 1."""
        return {"labels": max(1, int(self.encoded.num_targets.sum()))}

    def batch(self, items: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """Collate inputs, labels, and `target_positions`: whether each token is a target. [B, S]"""
        tensors = self.encoded.batch(items, multiple_of)
        return tensors | {"target_positions": tensors["labels"] != IGNORED_LABEL}


class Objective(ABC):
    """A self-supervised task on plain text: how texts become inputs and targets, the loss, and the held-out scores.

    A new objective is a subclass in its own file, a line in `bertcli.recipe.pretrain_schema.OBJECTIVES`, and its tests.

    Attributes:
        model_class: auto class of transformers, such as `AutoModelForMaskedLM`.
        pipeline_tag: pipeline tag of the model card.
        has_pipeline: whether the transformers pipeline with this tag performs the task the model was trained for.
        supported_keys: keys of the recipe's `objective` section that the objective uses.
        supports_pairs: whether texts may be sentence pairs with a pair label.
        supports_packing: whether several sequences may be packed into one row.
        needs_sentinels: whether a tokenizer trained on the corpus needs T5's sentinel tokens.
        has_perplexity: whether the loss is a cross-entropy over the vocabulary.
        can_score_saved_model: whether the saved model alone can be scored on held-out text.
    """

    model_class: ClassVar[str]
    pipeline_tag: ClassVar[str] = "feature-extraction"
    has_pipeline: ClassVar[bool] = False
    supported_keys: ClassVar[frozenset[str]] = frozenset()
    supports_pairs: ClassVar[bool] = False
    supports_packing: ClassVar[bool] = False
    needs_sentinels: ClassVar[bool] = False
    has_perplexity: ClassVar[bool] = True
    can_score_saved_model: ClassVar[bool] = True

    def __init__(self, section: ObjectiveSection, tokenizer: PreTrainedTokenizerBase):
        self.section, self.tokenizer = section, tokenizer
        self.template: SpecialTokensTemplate = special_tokens_template(tokenizer, pair=section.pairs is not None)

    def max_text_tokens(self, max_length: int) -> int:
        """Return the maximum number of text tokens in a sequence of `max_length` tokens, special tokens included."""
        return max_length - self.template.num_special_tokens

    def with_special_tokens(self, texts: Sequence[Text]) -> tuple[Encoded, np.ndarray, np.ndarray]:
        """Add special tokens to the texts.

        Returns:
            The sequences; whether each token may be masked, i.e. is neither special nor unknown [T]; whether each token
            starts a word [T].
        """
        template, builder = self.template, EncodedBuilder()
        word_starts: list[np.ndarray] = []
        prefix, separator, suffix = (
            np.zeros(len(part), bool) for part in (template.prefix, template.separator, template.suffix)
        )
        for row, text in enumerate(texts):
            builder.add(row, *template.build_inputs(text.first.tolist(), text.second.tolist()))
            word_starts += [prefix, text.first_word_starts, separator, text.second_word_starts, suffix]
        encoded = builder.build(self.tokenizer, None)
        is_special = np.isin(encoded.input_ids, np.asarray(self.tokenizer.all_special_ids))
        return encoded, ~is_special, np.concatenate(word_starts).astype(bool)

    def build_module(self, model: PreTrainedModel) -> torch.nn.Module:
        """Wrap `model` in the module that is trained. By default it computes logits for the target tokens only."""
        from bertcli.models.sparse_prediction import SparsePrediction

        return SparsePrediction(model)

    def model_to_save(self, module: torch.nn.Module) -> PreTrainedModel:
        """Return the model inside the trained module."""
        model: Any = module.model
        return model

    def config_fields(self) -> dict[str, Any]:
        """Return the fields to set in the model's configuration."""
        return {}

    @abstractmethod
    def build_targets(self, texts: Sequence[Text], random: np.random.Generator) -> TargetSequences:
        """Build inputs and targets from the texts, such as masked sequences and their labels."""

    @abstractmethod
    def loss(self, outputs: Any, targets: dict[str, torch.Tensor], num_targets: dict[str, int]) -> torch.Tensor:
        """Compute a micro-batch's share of the mean loss over the `num_targets` targets of the global batch."""

    @property
    def predicted_share(self) -> float:
        """Share of the tokens that the model computes logits for, to estimate memory."""
        return self.section.mlm_probability

    @property
    def num_models(self) -> float:
        """Number of models that are trained together, to estimate memory; a narrower one counts by its width."""
        return 1.0

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the held-out scores."""
        return ("loss", "accuracy", *(["perplexity"] if self.has_perplexity else []))

    @abstractmethod
    def score_batch(self, outputs: Any, targets: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        """Return, for each score that is a mean over targets, its sum over the batch and the number of targets."""


class TokenObjective(Objective):
    """An objective that predicts tokens: cross-entropy loss and accuracy over the target tokens."""

    def loss(self, outputs: Any, targets: dict[str, torch.Tensor], num_targets: dict[str, int]) -> torch.Tensor:
        """Compute the cross-entropy of the target tokens. Overwrites their logits."""
        from bertcli.pretraining.inplace_cross_entropy import inplace_cross_entropy

        return inplace_cross_entropy(_token_logits(outputs), targets["labels"]) / num_targets["labels"]

    def score_batch(self, outputs: Any, targets: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        """Return loss and accuracy over the target tokens."""
        from torch.nn import functional

        logits, labels = _token_logits(outputs), targets["labels"]
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=IGNORED_LABEL)
        num_labels = int((labels != IGNORED_LABEL).sum())
        return {
            "loss": (float(loss), num_labels),
            "accuracy": (float((logits.argmax(-1) == labels).sum()), num_labels),
        }


def _token_logits(outputs: Any) -> torch.Tensor:
    """Return the token logits [M, V], which models with two pretraining heads call `prediction_logits`."""
    return outputs.prediction_logits if "prediction_logits" in outputs else outputs.logits


def random_token_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the vocabulary without special tokens, from which random replacements are drawn."""
    return np.setdiff1d(np.arange(len(tokenizer)), np.asarray(tokenizer.all_special_ids))
