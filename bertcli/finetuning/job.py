"""…"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate import Accelerator

from bertcli.console import Console
from bertcli.data.batching import GlobalBatch, cut_off_tokens, training_batches
from bertcli.data.encoding import Encoded
from bertcli.files import write_json
from bertcli.finetuning.distillation import with_teacher
from bertcli.finetuning.frozen_outputs import with_vectors
from bertcli.finetuning.loss import loss_of
from bertcli.finetuning.setup import Prepared
from bertcli.heads.text_classification import TextClassification, average_windows
from bertcli.inference.forward import answer
from bertcli.inference.predictions import compare
from bertcli.inference.scoring import positive_number, score
from bertcli.metrics import compute_metrics
from bertcli.models.cls_states import tell_first_states
from bertcli.models.freezing import Remembered, Unfreezing, layers_of, rate_factors, reinitialise, unfreezing_of
from bertcli.models.from_pretrained import lasting_name, load_model
from bertcli.models.lora import add_lora, save_lora
from bertcli.models.padding_free import speed_up
from bertcli.recipe.plan import Plan
from bertcli.reports.pages import PREDICTIONS
from bertcli.runs.environment import describe_environment
from bertcli.runs.model_card import write_card
from bertcli.training.devices import width_multiple
from bertcli.training.job import Answers, Job, OnBatch, Scores
from bertcli.training.loop import Loss
from bertcli.training.meters import Clock

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


class FinetuneJob(Job):
    """A model learns a task."""

    def __init__(self, prepared: Prepared, plan: Plan):
        self.prepared, self.plan = prepared, plan
        self.recipe, self.tokenizer = prepared.recipe, prepared.tokenizer
        self.best_by = prepared.recipe.evaluation.best_by or prepared.task.deciding_metric
        self._additions: PeftModel | None = None  # of LoRA
        self._unfreezing: Unfreezing | None = None
        self._encoded: dict[str, Encoded] = {}  # with what a fixed encoder makes of them

    def build_model(self) -> PreTrainedModel:
        """The encoder with its head."""
        section, model = self.prepared.recipe.training, self.prepared.build_model()
        if section.reinitialise_layers:
            reinitialise(model, section.reinitialise_layers)
        if section.strategy == "lora":
            self._additions = add_lora(model, section, self._base)
        if section.strategy == "features":
            Remembered(model)
        if section.teacher_hidden_weight:
            tell_first_states(model, range(1, len(layers_of(model)) + 1))
        self._unfreezing = unfreezing_of(model, section, self.plan)
        return model

    @property
    def _base(self) -> str:
        name = self.recipe.model.name
        assert name is not None
        return lasting_name(name)

    def rate_factors(self, module: torch.nn.Module) -> dict[str, float]:
        """Those of layer-wise decay and of the head."""
        return rate_factors(cast("PreTrainedModel", module), self.prepared.recipe.training)

    @property
    def has_idle_weights(self) -> bool:
        """Whether layers join one by one."""
        return self.prepared.recipe.training.strategy == "gradual"

    def met_ids(self) -> np.ndarray:
        """Those of the training split, and the special ones."""
        met = np.bincount(self.prepared.encode("train").input_ids, minlength=len(self.tokenizer))
        met[self.tokenizer.all_special_ids] += 1
        return met.nonzero()[0]

    def set_learning(self, step: int) -> None:
        """Freeze and unfreeze as the strategy says."""
        if self._unfreezing is not None:
            self._unfreezing.set_for(step)

    def begin(self, accelerator: Accelerator, module: torch.nn.Module, console: Console) -> None:
        """Compute what a teacher answers, and what a fixed encoder makes of all rows, once."""
        prepared, student = self.prepared, cast("PreTrainedModel", module)
        if prepared.recipe.training.teacher is not None:
            self._encoded["train"] = with_teacher(prepared, self._rows_of("train"), student, accelerator, console)
        if prepared.recipe.training.strategy == "features":
            for split in ("train", "validation"):
                encoded, budget = self._rows_of(split), self.recipe.hardware.eval_batch_tokens
                with console.display(f"vectors {split}", len(encoded) * encoded.num_choices) as display:
                    self._encoded[split] = with_vectors(
                        accelerator,
                        student,
                        encoded,
                        budget,
                        display.advance,
                        console.warn,
                    )

    def save_model(self, module: torch.nn.Module, folder: Path) -> None:
        """Write the model, or only what LoRA added to it."""
        if self._additions is None:
            super().save_model(module, folder)
        else:
            save_lora(self._additions, self.tokenizer, folder, merged=self.prepared.recipe.training.lora_merge)

    @property
    def loss(self) -> Loss:
        """The head's loss."""
        return loss_of(self.prepared.head, self.prepared.recipe.training)

    def batches(self, accelerator: Accelerator, start_step: int, clock: Clock) -> Iterator[GlobalBatch]:
        """Batches of the training split."""
        training = self.prepared.recipe.training
        batches = training_batches(
            self._rows_of("train"),
            global_batch_size=training.global_batch_size,
            micro_batch_size=self.plan.micro_batch_size,
            seed=self.seed,
            start_step=start_step,
            total_steps=self.plan.total_steps,
            process=accelerator.process_index,
            num_processes=accelerator.num_processes,
            multiple_of=width_multiple(accelerator),
        )
        if not training.token_cutoff:
            return batches
        return cut_off_tokens(batches, training.token_cutoff, self.seed, start_step, accelerator.process_index)

    def score(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        split: str = "validation",
        on_batch: OnBatch = lambda num_items: None,
    ) -> dict[str, float]:
        """The task's metrics on a split."""
        prepared = self.prepared
        return score(
            accelerator,
            model,
            prepared.rows[split],
            self._rows_of(split),
            prepared.head,
            prepared.task,
            prepared.references[split],
            max_tokens=self.recipe.hardware.eval_batch_tokens,
            on_batch=on_batch,
        )

    def _rows_of(self, split: str) -> Encoded:
        return self._encoded.get(split) or self.prepared.encode(split)

    def look_back(self, accelerator: Accelerator, model: Path) -> tuple[Scores, Answers]:
        """Its scores on the splits that the task row names, and its answers to the validation split."""
        prepared, task = self.prepared, self.prepared.task
        scores: Scores = {}
        saved = load_model(str(model), prepared.mirror, prepared.head.model_class, {})
        speed_up(saved, accelerator.device)
        saved = accelerator.prepare_model(saved, evaluation_mode=True)
        if prepared.recipe.answers.thresholds == "tuned":
            prepared, scores["validation_tuned"] = with_tuned_thresholds(accelerator, saved, prepared, model)
            self.prepared = prepared
        lines = compare(
            accelerator,
            saved,
            prepared.rows["validation"],
            prepared.encode("validation"),
            prepared.head,
            task,
            max_tokens=self.recipe.hardware.eval_batch_tokens,
        )
        scores |= {split: self.score(accelerator, saved, split) for split in task.splits.more_validation}
        return scores, {PREDICTIONS: list(lines)}

    def describe(self) -> dict[str, Any]:
        """Task and model."""
        task, section = self.prepared.task, self.prepared.recipe.model
        size = section.size if section.name is None else None
        return {"task": task.name, "head": task.head, "model": section.name, "size": size} | self.prepared.head.facts

    def card(self, results: dict[str, Any]) -> str:
        """The card of a fine-tuned model."""
        recipe = self.prepared.recipe
        is_whole = recipe.training.strategy != "lora" or recipe.training.lora_merge
        base = None if is_whole else self._base
        return write_card(results, recipe, self.prepared.task, describe_environment(), base)


def with_tuned_thresholds(
    accelerator: Accelerator, model: torch.nn.Module, prepared: Prepared, folder: Path
) -> tuple[Prepared, dict[str, float]]:
    """The same with the thresholds that score the best F1 on the validation rows, and the metrics there.

    The configuration of the model in `folder` says them, for `eval` and `predict`.
    """
    head, task = cast("TextClassification", prepared.head), prepared.task
    rows, encoded, right = prepared.rows["validation"], prepared.encode("validation"), prepared.references["validation"]
    max_tokens = prepared.recipe.hardware.eval_batch_tokens
    parts = answer(accelerator, model, rows, encoded, head, max_tokens=max_tokens)
    logits = np.concatenate([average_windows(part, some) for _, part, some, _ in parts])
    tuned = head.tuned(task, logits, right)
    if accelerator.is_main_process:
        file = folder / "config.json"
        write_json(file, json.loads(file.read_text("utf-8")) | tuned.facts)
    scores = compute_metrics(
        task.metric_names, tuned.answer_kind, tuned.choose(logits), right, positive_number(task, tuned)
    )
    return replace(prepared, head=tuned), scores
