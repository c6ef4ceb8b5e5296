"""What every pretraining objective can do: ask a model about plain text and count how well it answers.

Shapes: N sequences, T tokens of all of them, B sequences of a batch, S tokens of the longest, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from bertcli.data.encoding import Frame, frame_of
from bertcli.data.loaders import Batchable
from bertcli.recipe.pretrain import ObjectiveSection

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

    def build(self, model: PreTrainedModel) -> torch.nn.Module:
        """What is trained, around the model that is saved: it gives logits where tokens are asked for."""
        from bertcli.heads.asked_positions import AskedPositions

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
    """An objective whose only targets are the tokens that a model's logits are of."""

    def loss(self, outputs: Any, targets: dict[str, torch.Tensor], counts: dict[str, int]) -> torch.Tensor:
        """Cross-entropy of the asked tokens."""
        from torch.nn import functional

        return functional.cross_entropy(outputs.logits.float(), targets["labels"], reduction="sum") / counts["labels"]

    def measure(self, outputs: Any, targets: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        """Loss and accuracy on the asked tokens."""
        return measure_tokens(outputs.logits, targets["labels"])


def measure_tokens(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, tuple[float, int]]:
    """Sums of loss and hits over the M asked tokens: logits [M, V], labels [M]."""
    from torch.nn import functional

    loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
    return {
        "loss": (float(loss), len(labels)),
        "accuracy": (float((logits.argmax(-1) == labels).sum()), len(labels)),
    }


def random_token_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The vocabulary without special tokens: what may stand in for a token by chance."""
    return np.setdiff1d(np.arange(len(tokenizer)), np.asarray(tokenizer.all_special_ids))
