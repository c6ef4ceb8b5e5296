"""What every pretraining objective can do: ask a model about plain text and count how well it answers.

Shapes: N sequences, T tokens of all of them, B sequences of a batch, S tokens of the longest, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from bertcli.data.batching import Batchable
from bertcli.data.encoding import IGNORED_LABEL, Encoded, Frame, Sequences, frame_of
from bertcli.data.packing import Packed
from bertcli.recipe.pretrain_schema import ObjectiveSection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Text:
    """One sequence as it stands in the corpus, without special tokens; `second` is empty unless it is a pair."""

    first: np.ndarray  # token ids
    first_starts: np.ndarray  # whether each begins a word
    second: np.ndarray
    second_starts: np.ndarray
    pair_label: int | None  # None: not a pair


class Asked(Batchable, Protocol):
    """Sequences turned into questions: what `Encoded` is for labels, with any kind of targets."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence as far as padding goes. [N]"""

    @property
    def counts(self) -> dict[str, int]:
        """The number of targets of each kind, over all sequences."""


@dataclass(frozen=True)
class AskedTokens:
    """Sequences some of whose tokens are asked for: their labels."""

    encoded: Encoded | Packed

    def packed(self, rows: list[np.ndarray], first_position: int) -> AskedTokens:
        """The same with several sequences in a row, positions counted from `first_position` in each."""
        assert isinstance(self.encoded, Encoded)
        return AskedTokens(Packed(self.encoded, rows, first_position))

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
        """Asked tokens."""
        return {"labels": max(1, int(self.encoded.num_targets.sum()))}

    def batch(self, items: np.ndarray, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """Inputs, labels, and which tokens are asked for. [B, S]"""
        tensors = self.encoded.batch(items, multiple_of)
        return tensors | {"asked": tensors["labels"] != IGNORED_LABEL}


class Objective(ABC):
    """One way to learn from plain text."""

    model_class: ClassVar[str]  # of transformers
    loss_is_of_tokens: ClassVar[bool] = True  # whether e to its power is a perplexity

    def __init__(self, section: ObjectiveSection, tokenizer: PreTrainedTokenizerBase):
        self.section, self.tokenizer = section, tokenizer
        self.frame: Frame = frame_of(tokenizer, pair=section.pairs is not None)

    def room(self, max_length: int) -> int:
        """Tokens of text in a sequence of `max_length`."""
        return max_length - self.frame.num_special

    def framed(self, texts: Sequence[Text]) -> tuple[Encoded, np.ndarray, np.ndarray]:
        """The texts with special tokens around them; which tokens are not special [T], and which begin a word [T].

        Special, too, are unknown tokens in the text: there is nothing to guess.
        """
        frame, made = self.frame, Sequences()
        starts: list[np.ndarray] = []
        before, between, after = (np.zeros(len(part), bool) for part in (frame.before, frame.between, frame.after))
        for row, text in enumerate(texts):
            made.add(row, *frame.join(text.first.tolist(), text.second.tolist()))
            starts += [before, text.first_starts, between, text.second_starts, after]
        encoded = made.encoded(self.tokenizer, None)
        is_special = np.isin(encoded.input_ids, np.asarray(self.tokenizer.all_special_ids))
        return encoded, ~is_special, np.concatenate(starts).astype(bool)

    def build(self, model: PreTrainedModel) -> torch.nn.Module:
        """What is trained, around the model that is saved: it gives logits where tokens are asked for."""
        from bertcli.models.sparse_prediction import AskedPositions

        return AskedPositions(model)

    def saved(self, module: torch.nn.Module) -> PreTrainedModel:
        """The model inside what is trained."""
        model: Any = module.model
        return model

    def config_fields(self) -> dict[str, Any]:
        """What the model's configuration must say."""
        return {}

    @abstractmethod
    def ask(self, texts: Sequence[Text], random: np.random.Generator) -> Asked:
        """Questions about the texts, chosen by chance."""

    @abstractmethod
    def loss(self, outputs: Any, targets: dict[str, torch.Tensor], counts: dict[str, int]) -> torch.Tensor:
        """The batch's share of the mean loss, `counts` targets of each kind being the whole."""

    @property
    def score_names(self) -> tuple[str, ...]:
        """The scores of held-out text."""
        return ("loss", "accuracy", *(["perplexity"] if self.loss_is_of_tokens else []))

    @abstractmethod
    def measure(self, outputs: Any, targets: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        """For each score its sum over a batch and the number it is a mean of."""


class TokenObjective(Objective):
    """An objective whose targets are the tokens that a model's logits are of."""

    def loss(self, outputs: Any, targets: dict[str, torch.Tensor], counts: dict[str, int]) -> torch.Tensor:
        """Cross-entropy of the asked tokens. Consumes their logits."""
        from bertcli.pretraining.inplace_cross_entropy import vocabulary_loss

        return vocabulary_loss(_token_logits(outputs), targets["labels"]) / counts["labels"]

    def measure(self, outputs: Any, targets: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        """Loss and accuracy on the asked tokens."""
        from torch.nn import functional

        logits, labels = _token_logits(outputs), targets["labels"]
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
        return {
            "loss": (float(loss), len(labels)),
            "accuracy": (float((logits.argmax(-1) == labels).sum()), len(labels)),
        }


def _token_logits(outputs: Any) -> torch.Tensor:
    """The logits of tokens, as models with one head call them and those for pretraining with two."""
    return outputs.prediction_logits if "prediction_logits" in outputs else outputs.logits


def random_token_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The vocabulary without special tokens: what may stand in for a token by chance."""
    return np.setdiff1d(np.arange(len(tokenizer)), np.asarray(tokenizer.all_special_ids))
