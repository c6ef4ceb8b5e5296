"""After training: calibrate the best model and tune its thresholds, then collect its scores and predictions.

Shapes: R rows, C labels (or choices).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate import Accelerator

from bertcli.files import manifest_update, write_json
from bertcli.finetuning.setup import FinetuneSetup
from bertcli.heads.text_classification import TextClassification, average_windows
from bertcli.inference.forward import Chunk, chunks_with_logits, predict_logits
from bertcli.inference.predictions import PredictionLines
from bertcli.inference.scoring import Decoded, decode
from bertcli.metrics.answers import GROUP
from bertcli.metrics.bootstrap import bootstrap_intervals
from bertcli.metrics.calibration import fit_temperature
from bertcli.metrics.scores import compute_scores
from bertcli.models.from_pretrained import ModelSource
from bertcli.models.padding_free import optimize_forward
from bertcli.models.temperature_scaling import WEIGHTS, divide_logits, saved_temperature
from bertcli.runs.folder import VALIDATION_ANSWERS, VALIDATION_PREDICTIONS
from bertcli.tasks.task import FoldTask
from bertcli.training.job import BestModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BestModelEvaluation:
    """The evaluation of the best model after training; with several processes, all of them take part.

    Args:
        folder: the model folder.
        logits: of the evaluation that selected the model on the validation split, if they were kept.
        decoded: what that evaluation decoded, if it was in this process.
        output_layer: name of the layer that computes the logits, if the model is to be calibrated.
    """

    def __init__(
        self,
        setup: FinetuneSetup,
        accelerator: Accelerator,
        folder: Path,
        logits: np.ndarray | None,
        decoded: Decoded | None,
        output_layer: str | None = None,
    ):
        self.setup, self._accelerator, self._folder = setup, accelerator, folder
        self._kept, self._output_layer = logits, output_layer
        self._decoded = decoded  # of the validation split; None once the model or the head has changed
        self._logit_scale = 1.0  # by which to multiply the model's logits to undo its calibration
        self._model: PreTrainedModel | None = None  # loaded when it has something to compute

    def evaluate(self) -> BestModel:
        """Calibrate the model and tune its thresholds, if the recipe says so; return its answers."""
        best, answers = BestModel(), self.setup.recipe.answers
        name = "validation"
        if answers.calibrated and self._kept is None:  # a run that was stopped after its calibration
            self._logit_scale = saved_temperature(self._folder) or 1.0
        if answers.calibrated or answers.thresholds == "tuned":
            before = self._decoded or self._decode("validation")
            best.intervals[name] = bootstrap_intervals(before.answers)
            self._decoded = None
        if answers.calibrated:
            best.extras["temperature"] = self._calibrate()
            name = "validation_calibrated"
        if answers.thresholds == "tuned":
            best.extras |= self._tune_thresholds()
            name = "validation_tuned"
        decoded, best.predictions[VALIDATION_PREDICTIONS] = self._decode_to_lines()
        best.answers[VALIDATION_ANSWERS] = decoded.answers
        if GROUP in decoded.answers:
            best.extras["group_by"] = self.setup.task.group_by
        best.intervals[name] = bootstrap_intervals(decoded.answers)
        if name != "validation":
            best.scores[name] = compute_scores(decoded.answers)
        for split in self.setup.task.splits.extra_validation:
            decoded = self._decode(split)
            best.scores[split] = compute_scores(decoded.answers) | {"loss": decoded.loss}
            best.intervals[split] = bootstrap_intervals(decoded.answers)
        return best

    def _decode_to_lines(self) -> tuple[Decoded, list[dict[str, Any]]]:
        """Return the decoded validation split, decoding it only if that is still to be done, and its predictions."""
        num_rows, task = len(self.setup.rows["validation"]), self.setup.task
        lines = PredictionLines(num_rows, self.setup.head, task, all_rows=isinstance(task, FoldTask))
        if self._decoded is None:
            return self._decode("validation", lines.add), lines.lines
        predictions = iter(self._decoded.predictions)
        for chunk in self._chunks("validation"):
            lines.add(chunk, [*islice(predictions, len(chunk[0]))])
        return self._decoded, lines.lines

    def _decode(
        self, split: str, on_chunk: Callable[[Chunk, Sequence[Any]], object] = lambda chunk, predictions: None
    ) -> Decoded:
        references = self.setup.references[split]
        return decode(self._chunks(split), self.setup.head, self.setup.task, references, on_chunk)

    def _chunks(self, split: str) -> Iterator[Chunk]:
        setup = self.setup
        rows, encoded = setup.rows[split], setup.encode(split)
        if split == "validation" and self._kept is not None:
            return chunks_with_logits(rows, encoded, setup.head, self._kept)
        max_tokens = setup.recipe.hardware.eval_batch_tokens
        chunks = predict_logits(
            self._accelerator, self._load(), rows, encoded, setup.head, max_tokens=max_tokens, with_loss=True
        )
        if self._logit_scale == 1.0:
            return chunks
        return ((part, items, np.float32(self._logit_scale) * logits, loss) for part, items, logits, loss in chunks)

    def _load(self) -> torch.nn.Module:
        if self._model is None:
            model = ModelSource(str(self._folder), self.setup.mirror).load_model(self.setup.head.model_class)
            optimize_forward(model, self._accelerator.device)
            self._model = self._accelerator.prepare_model(model, evaluation_mode=True)
        return self._model

    def _calibrate(self) -> float:
        """Divide the logits of the model by the temperature that fits the validation split best, and return it.

        A run that was stopped after this step finds the temperature in the weights, and keeps it.
        """
        assert self._output_layer is not None
        temperature = saved_temperature(self._folder)
        self._accelerator.wait_for_everyone()  # before the main process changes the weights
        if temperature is None:
            parts = [self.setup.head.to_probabilities(*chunk[1:3]) for chunk in self._chunks("validation")]
            temperature = fit_temperature(np.concatenate(parts), self.setup.references["validation"])
            if self._accelerator.is_main_process:
                divide_logits(self._folder, self._output_layer, temperature)
            self._accelerator.wait_for_everyone()
            self._model = None
        elif self._accelerator.is_main_process:
            with manifest_update(self._folder, WEIGHTS):
                pass  # list the weights, in case the run was killed before it did
        self._logit_scale = 1.0
        if self._kept is not None:
            self._kept = self._kept / np.float32(temperature)
        return temperature

    def _tune_thresholds(self) -> dict[str, object]:
        """Give the head the thresholds that maximize F1 on the validation split; return them for `results.json`.

        They are also written to `config.json` of the model, where `eval` and `predict` read them.
        """
        parts = [average_windows(*chunk[1:3]) for chunk in self._chunks("validation")]
        head, gold = cast("TextClassification", self.setup.head), self.setup.references["validation"]
        tuned = head.tune_thresholds(self.setup.task, np.concatenate(parts), gold)
        if self._accelerator.is_main_process:
            file = self._folder / "config.json"
            with manifest_update(self._folder, file.name):
                write_json(file, json.loads(file.read_text("utf-8")) | tuned.config_extras)
        self.setup = replace(self.setup, head=tuned)
        return tuned.config_extras
