"""The interface between a run and what it trains: fine-tuning and pretraining are two jobs of one trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from bertcli.console import Console
from bertcli.data.batching import GlobalBatch
from bertcli.metrics.answers import Answers
from bertcli.metrics.bootstrap import Interval
from bertcli.metrics.scores import selection_score
from bertcli.models.from_pretrained import save_model
from bertcli.recipe.plan import Plan
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe
from bertcli.runs.folder import ReasonToStop
from bertcli.runs.results import RunResults
from bertcli.training.loop import Loss
from bertcli.training.meters import RunClock

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Scores = dict[str, dict[str, float]]
"""Scores by split and metric name."""
Predictions = dict[str, list[dict[str, Any]]]
"""Predictions with the gold labels, by the name of their file in `predictions/`."""
Logits = dict[str, "np.ndarray"]
"""Logits of whole splits, by a key that identifies the encoded rows."""
OnBatch = Callable[[int], None]
"""Called with the number of items done after each batch."""


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a model on a split.

    Attributes:
        logits: what the scores were computed from, unless it is too large to keep.
        decoded: what the job made of the logits, in whatever form it wants to have it back in `evaluate_best`.
    """

    scores: dict[str, float]
    logits: Logits = field(default_factory=dict)
    decoded: Any = None


@dataclass
class BestModel:
    """What the best model answered after training.

    Attributes:
        scores: on splits that were not used to select it, by split and metric.
        intervals: 95 % confidence intervals, by split and score.
        predictions: the lines of each file in `predictions/`, with the gold labels.
        extras: entries in `results.json` that are known only now, such as thresholds.
        answers: what the validation scores are computed from, by the name of its file in `predictions/`.
    """

    scores: Scores = field(default_factory=dict)
    intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)
    predictions: Predictions = field(default_factory=dict)
    answers: dict[str, Answers] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)


class Job(ABC):
    """What a run with one seed trains: its model, batches and loss, its evaluation, and its entries in the results."""

    recipe: Recipe | PretrainRecipe
    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    best_by: str  # the metric that selects the best model
    reason_to_stop: ReasonToStop | None = None  # asked after each evaluation
    stream_position: list[int] | None = None  # position in the data, for checkpoints; None: the step determines it

    @property
    def seed(self) -> int:
        """The random seed."""
        return self.recipe.training.seed[0]

    @abstractmethod
    def build_model(self, console: Console) -> torch.nn.Module:
        """Build the module to train; new weights come from torch's global generator, so seed that first.

        Args:
            console: used to report which weights of a pretrained model are newly initialized.
        """

    def lr_scales(self, module: torch.nn.Module) -> dict[str, float]:
        """Return the learning-rate scale by parameter name; parameters that are not in it have scale 1."""
        return {}

    @property
    def has_unused_parameters(self) -> bool:
        """Whether some steps leave trainable parameters without a gradient."""
        return False

    def seen_token_ids(self) -> np.ndarray | None:
        """Return the distinct token ids of the training data; None if any id may occur."""
        return None

    def set_trainable(self, step: int) -> None:
        """Set which parameters are trainable in optimizer step `step` (from 0). By default, all are."""
        return

    def on_train_start(self, accelerator: Accelerator, module: torch.nn.Module, console: Console) -> None:
        """Compute what every epoch reuses; called once before the first step."""
        return

    def model_to_save(self, module: torch.nn.Module) -> PreTrainedModel:
        """Return the part of the trained module that is saved in `model/`."""
        saved: Any = module
        return saved

    def save_model(self, module: torch.nn.Module, folder: Path) -> None:
        """Write the contents of `model/`."""
        save_model(self.model_to_save(module), self.tokenizer, folder)

    @property
    @abstractmethod
    def data_fingerprint(self) -> str:
        """A hash of the training and validation data, which must not change while the run is interrupted."""

    @property
    def start_models(self) -> Mapping[str, str]:
        """The hashes of the models of runs that it starts or learns from, by name; they must not change either."""
        return {}

    @property
    @abstractmethod
    def tokens_per_micro_batch(self) -> float:
        """The average number of tokens that a process computes at a time."""

    @property
    @abstractmethod
    def loss(self) -> Loss:
        """The loss function that the training loop calls."""

    @abstractmethod
    def batches(self, accelerator: Accelerator, start_step: int, clock: RunClock) -> Iterator[GlobalBatch]:
        """Yield the batches of this process from `start_step` on, until the clock says that the run is over."""

    @abstractmethod
    def evaluate(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        split: str = "validation",
        on_batch: OnBatch = lambda num_items: None,
    ) -> Evaluation:
        """Evaluate a model on a split."""

    def selection_score(self, scores: dict[str, float]) -> float:
        """Return the score used to select the best model, negated if lower is better: the highest is the best."""
        return selection_score(self.best_by, scores[self.best_by])

    def evaluate_best(self, accelerator: Accelerator, model: Path, logits: Logits, decoded: Any) -> BestModel:
        """Return what the best model answers after training; by default, nothing.

        Args:
            logits: of the evaluation that selected the model, as far as they were kept.
            decoded: of that evaluation; None if another process computed it, before this one resumed the run.
        """
        return BestModel()

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the keys of `results.json` that describe the job, such as task and model."""

    @abstractmethod
    def card(self, results: RunResults) -> str:
        """Return the text of the model card."""
