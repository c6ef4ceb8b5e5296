"""What a run trains, as the run sees it: fine-tuning and pretraining are two jobs for one way of running."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from bertcli.console import Console
from bertcli.data.batching import GlobalBatch
from bertcli.models.from_pretrained import save_model
from bertcli.recipe.plan import Plan
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe
from bertcli.training.loop import Loss
from bertcli.training.meters import Clock

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Scores = dict[str, dict[str, float]]
"""By split and name."""


Answers = dict[str, list[dict[str, Any]]]
"""Rows with what is right and what was answered, by their file in `predictions/`."""


OnBatch = Callable[[int], None]
"""Told the number of items done after each batch."""


class Job(ABC):
    """One run with one seed: its model, its batches, how it is scored and what is told of it."""

    recipe: Recipe | PretrainRecipe
    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    best_by: str  # the score that chooses the best model
    place: list[int] | None = None  # where in its data it is, for a checkpoint, if the step does not say it

    @property
    def seed(self) -> int:
        """The seed of everything that chance decides."""
        return self.recipe.training.seed[0]

    @abstractmethod
    def build_model(self) -> torch.nn.Module:
        """What is trained; what is fresh in it comes from torch's generator, so seed that first."""

    def rate_factors(self, module: torch.nn.Module) -> dict[str, float]:
        """By parameter, the share of the learning rate it learns with; all of it if not named."""
        return {}

    @property
    def has_idle_weights(self) -> bool:
        """Whether some steps leave weights alone that others teach."""
        return False

    def met_ids(self) -> np.ndarray | None:
        """The token ids that training meets, each once; None: any of them."""
        return None

    def set_learning(self, step: int) -> None:
        """Let learn what learns in the optimiser step number `step` (from 0): everything, always."""
        return

    def begin(self, accelerator: Accelerator, module: torch.nn.Module, console: Console) -> None:
        """Compute what the steps will need again and again: nothing."""
        return

    def model_to_save(self, module: torch.nn.Module) -> PreTrainedModel:
        """The part of what is trained that `model/` holds."""
        saved: Any = module
        return saved

    def save_model(self, module: torch.nn.Module, folder: Path) -> None:
        """Write what `model/` holds."""
        save_model(self.model_to_save(module), self.tokenizer, folder)

    @property
    @abstractmethod
    def loss(self) -> Loss:
        """The loss as the loop takes it."""

    @abstractmethod
    def batches(self, accelerator: Accelerator, start_step: int, clock: Clock) -> Iterator[GlobalBatch]:
        """The batches from `start_step` on, as this process sees them, until the clock says that all is done."""

    @abstractmethod
    def score(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        split: str = "validation",
        on_batch: OnBatch = lambda num_items: None,
    ) -> dict[str, float]:
        """The scores on a split."""

    def goodness(self, scores: dict[str, float]) -> float:
        """How good the scores are: more is better."""
        return scores[self.best_by]

    def look_back(self, accelerator: Accelerator, model: Path) -> tuple[Scores, Answers]:
        """Of the saved model, the scores on splits that nothing is chosen by, and its answers beside the right ones."""
        return {}, {}

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What `results.json` says of the job itself."""

    @abstractmethod
    def card(self, results: dict[str, Any]) -> str:
        """The model card's text."""
