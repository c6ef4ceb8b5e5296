"""…"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from bertcli.console import Console
from bertcli.data.batching import GlobalBatch, token_budget_batches
from bertcli.errors import ModelError
from bertcli.inference.forward import check_finite
from bertcli.models.from_pretrained import load_model
from bertcli.models.from_scratch import build_from_config
from bertcli.models.padding_free import speed_up
from bertcli.pretraining.batches import Feed, Stage, texts_of
from bertcli.pretraining.objective import Asked
from bertcli.pretraining.setup import HELD_OUT_SALT, Pretraining, plan_stages, prepare, unigram_entropy
from bertcli.recipe.plan import Plan
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import HardwareSection
from bertcli.runs.environment import describe_environment
from bertcli.runs.history import is_better_lower
from bertcli.runs.model_card import write_pretraining_card
from bertcli.training.devices import build_accelerator, on_device, width_multiple
from bertcli.training.fsdp import own_share
from bertcli.training.job import Job, OnBatch
from bertcli.training.loop import Loss
from bertcli.training.meters import Clock

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def score_held_out(
    recipe: PretrainRecipe, run: str, *, mirror: Path | None, hardware: HardwareSection | None, console: Console
) -> dict[str, Any]:
    """The scores of a pretraining run's model on its held-out text.

    Raises:
        ModelError: the run kept only a part of what was trained, such as ELECTRA's discriminator.
    """
    prepared = prepare(recipe, mirror, console)
    if recipe.objective.kind == "replaced_tokens":
        raise ModelError(f"{run} holds the discriminator alone, which cannot be scored without its generator")
    recipe = recipe.model_copy(update={"hardware": recipe.hardware.with_asked(hardware)})
    accelerator = build_accelerator(recipe.hardware)
    module = prepared.objective.build(load_model(run, mirror, prepared.objective.model_class, {}))
    speed_up(module, accelerator.device)
    plan, stages = plan_stages(recipe, prepared)
    job, sequences = PretrainJob(prepared, plan, stages), len(prepared.held_out)
    with console.display("eval held-out text", sequences) as display:
        scores = job.score(accelerator, accelerator.prepare_model(module), on_batch=display.advance)
    return {
        "objective": recipe.objective.kind,
        "run": run,
        "num_examples": sequences,
        "metrics": {"validation": scores},
    }


class PretrainJob(Job):
    """A model learns from plain text."""

    def __init__(self, prepared: Pretraining, plan: Plan, stages: list[Stage]):
        self.prepared, self.plan, self.stages = prepared, plan, stages
        self.recipe, self.tokenizer = prepared.recipe, prepared.tokenizer
        self.best_by = prepared.recipe.evaluation.best_by or "loss"
        self._feed = Feed(
            prepared.recipe, prepared.corpus, prepared.train, prepared.objective, self.seed, prepared.first_position
        )

    def build_model(self) -> torch.nn.Module:
        """A fresh model, or the named one to go on with."""
        prepared, section = self.prepared, self.prepared.recipe.model
        model_class = prepared.objective.model_class
        if section.name is None:
            model = build_from_config(prepared.config, model_class)
        else:
            model = load_model(
                section.name, prepared.mirror, model_class, prepared.objective.config_fields(), dropout=section.dropout
            )
        return prepared.objective.build(model)

    def model_to_save(self, module: torch.nn.Module) -> PreTrainedModel:
        """What the objective keeps."""
        return self.prepared.objective.saved(module)

    @property
    def loss(self) -> Loss:
        """The objective's loss."""
        return self.prepared.objective.loss

    def batches(self, accelerator: Accelerator, start_step: int, clock: Clock) -> Iterator[GlobalBatch]:
        """Batches of all stages, one after the other."""
        step, known = start_step, self.place
        for number, stage in enumerate(self.stages):
            for batch in self._feed.batches(
                stage,
                step,
                clock,
                self.plan.micro_batch_size,
                accelerator.process_index,
                accelerator.num_processes,
                width_multiple(accelerator),
                (known[1], known[2], known[3]) if known and known[0] == number else None,
            ):
                step += 1
                self.place = [number, *self._feed.place]
                yield batch

    def score(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        split: str = "validation",
        on_batch: OnBatch = lambda num_items: None,
    ) -> dict[str, float]:
        """Loss, perplexity and accuracy on held-out text, always the same and with the same tokens asked for.

        Raises:
            TrainingError: one of them is not finite.
        """
        objective, asked = self.prepared.objective, self._asked_of_held_out
        sums: dict[str, np.ndarray] = {}
        model.eval()
        batches = list(token_budget_batches(asked.lengths, self.recipe.hardware.eval_batch_tokens))
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(HELD_OUT_SALT)
            for items, counts in own_share(batches, accelerator, model):
                inputs = on_device(asked.batch(items, width_multiple(accelerator)), model, accelerator.device)
                targets = {name: inputs.pop(name) for name in asked.counts if name in inputs}
                for name, pair in objective.measure(model(**inputs), targets).items():
                    sums[name] = sums.get(name, np.zeros(2)) + np.asarray(pair) * counts
                on_batch(len(items))
        everyones = gather_object([sums])
        names = sorted({name for own in everyones for name in own})
        totals = {name: np.sum([own[name] for own in everyones if name in own], axis=0) for name in names}
        scores = {name: float(total / max(1.0, number)) for name, (total, number) in totals.items()}
        check_finite(list(scores.values()))
        if not objective.loss_is_of_tokens:
            return scores
        return scores | {"perplexity": math.exp(min(scores["loss"], 100.0))}

    @cached_property
    def _asked_of_held_out(self) -> Asked:
        prepared = self.prepared
        texts = texts_of(prepared.corpus, prepared.held_out, np.arange(len(prepared.held_out)))
        return prepared.objective.ask(texts, np.random.default_rng(HELD_OUT_SALT))

    def goodness(self, scores: dict[str, float]) -> float:
        """A lower loss or perplexity is better, of everything else a higher score."""
        value = scores[self.best_by]
        return -value if is_better_lower(self.best_by) else value

    def describe(self) -> dict[str, Any]:
        """Objective, model, corpus, and the entropy that a model without context would be left with."""
        section, corpus = self.prepared.recipe.model, self.prepared.corpus
        return {
            "objective": self.prepared.recipe.objective.kind,
            "model": section.name,
            "family": section.family,
            "size": section.size,
            "vocabulary": len(self.tokenizer),
            "num_documents": len(corpus.documents) - 1,
            "num_tokens": len(corpus.tokens),
            "unigram_entropy": unigram_entropy(corpus, self.prepared.held_out, len(self.tokenizer)),
        }

    def card(self, results: dict[str, Any]) -> str:
        """The card of a pretrained model."""
        return write_pretraining_card(results, self.prepared.recipe, describe_environment())
