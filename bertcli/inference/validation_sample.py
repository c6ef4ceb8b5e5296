"""A bounded sample of a run's validation rows, to score the same model in several forms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.data.encoding import Encoded
from bertcli.data.sources import load_split, with_row_numbers
from bertcli.errors import DataError
from bertcli.heads.labels import labelled_rows
from bertcli.inference.loaded_model import LoadedModel, finetuning_recipe, load_for_inference
from bertcli.inference.scoring import decode
from bertcli.metrics.scores import compute_scores, is_better_lower, selection_score
from bertcli.models.from_pretrained import ModelSource
from bertcli.recipe.schema import HardwareSection
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel

MAX_ROWS = 1000


@dataclass(frozen=True)
class ValidationSample:
    """Evenly spaced validation rows of a run's task, encoded for its model."""

    loaded: LoadedModel
    task: Task
    rows: Dataset
    encoded: Encoded
    references: Any

    def score(self, model: torch.nn.Module) -> dict[str, float]:
        """Return the task's metrics of a model that takes the same inputs and returns the same outputs.

        Raises:
            TrainingError: if some logits are non-finite.
        """
        chunks = replace(self.loaded, model=model).predict_logits(self.rows, self.encoded)
        return compute_scores(decode(chunks, self.loaded.head, self.task, self.references).answers)

    def batches(self, names: list[str], batch_size: int, num_batches: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yield padded batches of rows, evenly spaced over the sample; rows are repeated if there are too few."""
        indices = np.linspace(0, len(self.encoded) - 1, batch_size * num_batches).round().astype(np.int64)
        for items in np.random.default_rng(0).permutation(indices).reshape(num_batches, batch_size):
            batch = self.encoded.batch(items)
            yield {name: batch[name] for name in names}

    def main_metric(self, scores: Mapping[str, float]) -> str:
        """Return the name of the score, of those from `score`, by which forms of the model are compared."""
        primary = self.task.primary_metric
        return primary if primary in scores else "accuracy"  # of tags that do not mark entities

    def points_lost(self, metric: str, before: float, after: float) -> float:
        """Return by how many points a score became worse; negative if it became better.

        A point is a hundredth of the range of a score such as accuracy, and 1 % of an error or loss.
        """
        lost = selection_score(metric, before) - selection_score(metric, after)
        if is_better_lower(metric):
            return 100 * lost / max(abs(before), 1e-9)
        return lost if self.task.answer_kind == "question_answering" else 100 * lost


def load_validation_sample(
    source: ModelSource, model: PreTrainedModel, hardware: HardwareSection, max_rows: int = MAX_ROWS
) -> ValidationSample | None:
    """Load and encode validation rows of the run that a model belongs to; return None if it is not that of a run.

    Args:
        model: the model, loaded from `source`.

    Raises:
        DataError: if the rows are not available, or their labels are hidden.
    """
    if finetuning_recipe(source.name) is None:
        return None
    loaded = load_for_inference(source, hardware, model=model)
    task = loaded.task.model_copy(update={"labels": loaded.task.labels or loaded.head.labels})
    rows = load_split(task, "validation", source.mirror)
    if loaded.data.skip_unlabelled:
        rows = labelled_rows(task, rows)
    num_rows = min(len(rows), max_rows)
    rows = with_row_numbers(rows).select([index * len(rows) // num_rows for index in range(num_rows)])
    references = loaded.head.references(task, rows)
    if references is None:
        raise DataError(f"{task.name}: the labels of split 'validation' are hidden")
    encoded = loaded.head.encode(task, rows, loaded.tokenizer, loaded.data)
    return ValidationSample(loaded, task, rows, encoded, references)
