"""The fine-tuning job: model, strategy, batches, loss, evaluation and model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate import Accelerator

from bertcli.console import Console
from bertcli.data.batching import GlobalBatch, apply_token_cutoff, training_batches
from bertcli.data.encoding import Encoded
from bertcli.finetuning.best_model import BestModelEvaluation
from bertcli.finetuning.distillation import with_teacher_outputs
from bertcli.finetuning.frozen_outputs import with_frozen_outputs
from bertcli.finetuning.loss import build_loss
from bertcli.finetuning.setup import FinetuneSetup
from bertcli.inference.forward import KeptLogits, predict_logits
from bertcli.inference.scoring import Decoded, decode
from bertcli.metrics.scores import compute_scores
from bertcli.models.cls_states import record_cls_states
from bertcli.models.freezing import (
    LayerFreezer,
    PrecomputedHiddenStates,
    build_freezer,
    encoder_layers,
    lowest_trainable_depth,
    lr_scales,
    reinitialize_layers,
)
from bertcli.models.lora import add_lora, save_lora
from bertcli.models.temperature_scaling import find_output_layer
from bertcli.recipe.plan import Plan
from bertcli.runs.environment import describe_environment
from bertcli.runs.folder import ReasonToStop
from bertcli.runs.model_card import build_model_card
from bertcli.runs.results import RunResults
from bertcli.training.devices import pad_to_multiple_of
from bertcli.training.job import BestModel, Evaluation, Job, Logits, OnBatch
from bertcli.training.loop import Loss
from bertcli.training.meters import RunClock

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class FinetuneJob(Job):
    """Fine-tune a model on one task."""

    def __init__(self, setup: FinetuneSetup, plan: Plan, reason_to_stop: ReasonToStop | None = None):
        self.setup, self.plan, self.reason_to_stop = setup, plan, reason_to_stop
        self.recipe, self.tokenizer = setup.recipe, setup.tokenizer
        self.best_by = setup.recipe.evaluation.best_by or setup.task.primary_metric
        self._lora: PeftModel | None = None
        self._freezer: LayerFreezer | None = None
        self._output_layer: str | None = None  # if the model will be calibrated
        self._encoded: dict[str, Encoded] = {}  # splits with outputs of a teacher or a frozen encoder

    def build_model(self, console: Console) -> PreTrainedModel:
        """Build the model, and reinitialize layers, add LoRA or freeze parameters as the recipe says."""
        section, model = self.setup.recipe.training, self.setup.build_model(console)
        if self.setup.recipe.answers.calibrated:
            num_logits = 1 if self.setup.head.answer_kind == "multiple_choice" else len(self.setup.head.labels)
            self._output_layer = find_output_layer(model, num_logits)
        if section.reinit_layers:
            reinitialize_layers(model, section.reinit_layers)
        if section.strategy == "lora":
            self._lora = add_lora(model, section, self._base_model)
        if section.strategy == "features":
            PrecomputedHiddenStates(model)
        if section.teacher_hidden_weight:
            record_cls_states(model, range(1, len(encoder_layers(model)) + 1))
        self._freezer = build_freezer(model, section, self.plan)
        if section.strategy == "gradual":
            last_step, num_layers = self.plan.total_steps - 1, len(encoder_layers(model))
            if lowest_trainable_depth(section, num_layers, self.plan, last_step) > num_layers:
                console.warn(
                    f"training.strategy=gradual unfreezes no layer in {self.plan.total_steps} steps: only the head is "
                    "trained. Lower training.unfreeze_every_steps or training.unfreeze_every_epochs, or train longer"
                )
        return model

    @property
    def _base_model(self) -> str:
        assert self.setup.source is not None
        return self.setup.source.absolute_name

    def lr_scales(self, module: torch.nn.Module) -> dict[str, float]:
        """Return the learning-rate scales of layer-wise decay and of the head."""
        return lr_scales(cast("PreTrainedModel", module), self.setup.recipe.training)

    @property
    def has_unused_parameters(self) -> bool:
        """Whether layers are unfrozen gradually."""
        return self.setup.recipe.training.strategy == "gradual"

    def seen_token_ids(self) -> np.ndarray:
        """Return the token ids of the training split and the special token ids."""
        counts = np.bincount(self.setup.encode("train").input_ids, minlength=len(self.tokenizer))
        counts[self.tokenizer.all_special_ids] += 1
        return counts.nonzero()[0]

    def set_trainable(self, step: int) -> None:
        """Freeze and unfreeze layers as the strategy requires at `step`."""
        if self._freezer is not None:
            self._freezer.set_step(step)

    def on_train_start(self, accelerator: Accelerator, module: torch.nn.Module, console: Console) -> None:
        """Compute the outputs of the teacher and of the frozen encoder, if there are any."""
        setup, model = self.setup, cast("PreTrainedModel", module)
        if setup.recipe.training.teacher is not None:
            encoded = self._encoded_split("train")
            self._encoded["train"] = with_teacher_outputs(setup, encoded, model, accelerator, console)
        if setup.recipe.training.strategy == "features":
            for split in ("train", "validation"):
                encoded, max_tokens = self._encoded_split(split), self.recipe.hardware.eval_batch_tokens
                with console.display(f"frozen encoder, {split}", len(encoded) * encoded.num_choices) as display:
                    self._encoded[split] = with_frozen_outputs(
                        accelerator, model, encoded, max_tokens, display.advance, console.warn
                    )

    def save_model(self, module: torch.nn.Module, folder: Path) -> None:
        """Save the model, or only its LoRA adapter."""
        if self._lora is None:
            super().save_model(module, folder)
        else:
            save_lora(self._lora, self.tokenizer, folder, merged=self.setup.recipe.training.lora_merge)

    @property
    def data_fingerprint(self) -> str:
        """As `FinetuneSetup.data_fingerprint`."""
        return self.setup.data_fingerprint

    @property
    def start_models(self) -> Mapping[str, str]:
        """As `FinetuneSetup.start_models`."""
        return self.setup.start_models

    @property
    def tokens_per_micro_batch(self) -> float:
        """The average number of tokens in a micro-batch of training rows."""
        encoded = self.setup.encode("train")
        return len(encoded.input_ids) / len(encoded) * self.plan.micro_batch_size

    @property
    def loss(self) -> Loss:
        """The head's loss, with distillation losses if there is a teacher."""
        return build_loss(self.setup.head, self.setup.recipe.training)

    def batches(self, accelerator: Accelerator, start_step: int, clock: RunClock) -> Iterator[GlobalBatch]:
        """Return the batches of the training split, with token cutoff if the recipe enables it."""
        training = self.setup.recipe.training
        batches = training_batches(
            self._encoded_split("train"),
            global_batch_size=training.global_batch_size,
            micro_batch_size=self.plan.micro_batch_size,
            seed=self.seed,
            start_step=start_step,
            total_steps=self.plan.total_steps,
            process=accelerator.process_index,
            num_processes=accelerator.num_processes,
            multiple_of=pad_to_multiple_of(accelerator),
            balance=training.balance is not None,
        )
        if not training.token_cutoff:
            return batches
        classifier_position = -1 if self._encoded_split("train").padding_side == "left" else 0
        return apply_token_cutoff(
            batches, training.token_cutoff, self.seed, start_step, accelerator.process_index, classifier_position
        )

    def evaluate(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        split: str = "validation",
        on_batch: OnBatch = lambda num_items: None,
    ) -> Evaluation:
        """Compute the metrics and the loss on a split."""
        setup, encoded = self.setup, self._encoded_split(split)
        chunks = KeptLogits(
            predict_logits(
                accelerator,
                model,
                setup.rows[split],
                encoded,
                setup.head,
                max_tokens=self.recipe.hardware.eval_batch_tokens,
                with_loss=True,
                on_batch=on_batch,
            )
        )
        decoded = decode(chunks, setup.head, setup.task, setup.references[split])
        scores = compute_scores(decoded.answers) | {"loss": decoded.loss}
        logits = {} if chunks.logits is None else {encoded.fingerprint: chunks.logits}
        return Evaluation(scores, logits, decoded)

    def _encoded_split(self, split: str) -> Encoded:
        return self._encoded.get(split) or self.setup.encode(split)

    def evaluate_best(
        self, accelerator: Accelerator, model: Path, logits: Logits, decoded: Decoded | None
    ) -> BestModel:
        """Calibrate the best model and tune its thresholds, if the recipe says so; return its answers."""
        kept = logits.get(self.setup.encode("validation").fingerprint)
        return BestModelEvaluation(self.setup, accelerator, model, kept, decoded, self._output_layer).evaluate()

    def describe(self) -> dict[str, Any]:
        """Return the task, head and model, and the hashes of the files and runs that the model came from."""
        task, section = self.setup.task, self.setup.recipe.model
        size = section.size if section.name is None else None
        described: dict[str, Any] = {"task": task.name, "head": task.head, "model": section.name, "size": size}
        described["source_fingerprint"] = self.setup.source_fingerprint
        if self.start_models:
            described["start_models"] = dict(self.start_models)
        return described | self.setup.head.config_extras

    def card(self, results: RunResults) -> str:
        """Return the model card."""
        recipe = self.setup.recipe
        is_full_model = recipe.training.strategy != "lora" or recipe.training.lora_merge
        base = None if is_full_model else self._base_model
        return build_model_card(results, recipe, self.setup.task, describe_environment(), base)
