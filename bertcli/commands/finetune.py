"""`bertcli finetune`: from a recipe to a run folder with a fine-tuned model and its scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from accelerate import Accelerator

from bertcli.commands.comparing import compare
from bertcli.commands.job import Answers, Job, OnBatch, Scores, join, open_together, read_finished
from bertcli.commands.loss import loss_of
from bertcli.commands.prepare import Prepared, prepare
from bertcli.commands.room import check_disk
from bertcli.commands.score import score
from bertcli.commands.seeds import say_results, train_seeds
from bertcli.commands.teacher import open_teacher, with_teacher
from bertcli.commands.tuning import with_tuned_thresholds
from bertcli.commands.vectors import with_vectors
from bertcli.data.encoding import Encoded
from bertcli.data.loaders import GlobalBatch, cut_off_tokens, training_batches
from bertcli.models import adapt, build
from bertcli.models.first_states import tell_first_states
from bertcli.models.padding_free import speed_up
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.plan import Plan, make_plan
from bertcli.recipe.schema import Recipe
from bertcli.runs.card import write_card
from bertcli.runs.console import Console
from bertcli.runs.environment import describe_environment
from bertcli.runs.folder import check_run_folder
from bertcli.runs.report import PREDICTIONS
from bertcli.training.devices import width_multiple
from bertcli.training.loop import Loss
from bertcli.training.progress import Clock

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

MANY_ROWS = 20_000  # whose tokens take seconds


def finetune(
    recipe: Recipe,
    run: Path,
    *,
    mirror: Path | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Fine-tune as the recipe says, once for each of its seeds; return what `results.json` holds.

    With one seed `run` is the run folder; with several it holds one run folder a seed (`seed-1` …) and a
    `results.json` with mean and standard deviation. A run that is there already is resumed, or just read if finished.

    Raises:
        BertcliError: one of its kinds, each with its cure.
    """
    processes, console = join(recipe.hardware, console)
    finished = None if dry_run or overwrite else read_finished(processes, run, dump_recipe(recipe), console)
    if finished is not None:
        return finished
    with processes.main_process_first(), console.waiting("reading rows"):  # the others find its cache
        prepared = prepare(recipe, mirror)
    if len(prepared.rows["train"]) > MANY_ROWS:
        console.say(f"tokens    of {len(prepared.rows['train'])} training rows are made")
    with console.waiting("tokenising"):
        plan = make_plan(recipe, len(prepared.encode("train")), processes.num_processes)
    _say_plan(console, prepared, plan, run)
    if processes.is_main_process:
        check_run_folder(run, dump_recipe(recipe), overwrite=overwrite)
        check_disk(run, recipe, prepared.count_parameters())
    if dry_run:
        model = FinetuneJob(prepared, plan).build_model()
        if recipe.training.teacher is not None:
            open_teacher(prepared, model)
        console.say("dry run: recipe, data, labels, model, run folder and disk are fine; nothing was trained")
        return {"dry_run": True, "run": str(run)}
    folder = open_together(processes, run, dump_recipe(recipe), console, overwrite=overwrite)
    for split in prepared.rows:
        with console.waiting("tokenising"):
            notes = prepared.encode(split).notes
        console.warn_of_rows(notes, where=f"{split} rows")
    results = train_seeds(
        recipe.training.seed,
        lambda seed: FinetuneJob(prepared.with_seed(seed), plan),
        lambda job: dump_recipe(job.recipe),
        folder,
        processes,
        console,
    )
    say_results(console, results, folder)
    return results


class FinetuneJob(Job):
    """A model learns a task."""

    def __init__(self, prepared: Prepared, plan: Plan):
        self.prepared, self.plan = prepared, plan
        self.recipe, self.tokenizer = prepared.recipe, prepared.tokenizer
        self.best_by = prepared.recipe.evaluation.best_by or prepared.task.deciding_metric
        self._additions: PeftModel | None = None  # of LoRA
        self._unfreezing: adapt.Unfreezing | None = None
        self._encoded: dict[str, Encoded] = {}  # with what a fixed encoder makes of them

    def build_model(self) -> PreTrainedModel:
        """The encoder with its head."""
        section, model = self.prepared.recipe.training, self.prepared.build_model()
        if section.reinitialise_layers:
            adapt.reinitialise(model, section.reinitialise_layers)
        if section.strategy == "lora":
            self._additions = adapt.add_lora(model, section, self._base)
        if section.strategy == "features":
            adapt.Remembered(model)
        if section.teacher_hidden_weight:
            tell_first_states(model, range(1, len(adapt.layers_of(model)) + 1))
        self._unfreezing = adapt.unfreezing_of(model, section, self.plan)
        return model

    @property
    def _base(self) -> str:
        name = self.recipe.model.name
        assert name is not None
        return build.lasting_name(name)

    def rate_factors(self, module: torch.nn.Module) -> dict[str, float]:
        """Those of layer-wise decay and of the head."""
        return adapt.rate_factors(cast("PreTrainedModel", module), self.prepared.recipe.training)

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
            adapt.save_lora(self._additions, self.tokenizer, folder, merged=self.prepared.recipe.training.lora_merge)

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
        saved = build.load_model(str(model), prepared.mirror, prepared.head.model_class, {})
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


def _say_plan(console: Console, prepared: Prepared, plan: Plan, run: Path) -> None:
    recipe, training = prepared.recipe, prepared.recipe.training
    labels = f" ({', '.join(prepared.head.labels[:10])})" if prepared.head.labels else ""
    rows = {split: len(part) for split, part in prepared.rows.items()}
    windows = f" in {plan.num_train_examples} windows" if plan.num_train_examples > rows["train"] else ""
    accumulation = f" in {plan.accumulation_steps} micro-batches" if plan.accumulation_steps > 1 else ""
    console.say(f"task      {prepared.task.name}: {prepared.task.answer_kind}{labels}")
    console.say(f"data      {rows['train']} training{windows} and {rows['validation']} validation rows")
    console.say(f"model     {recipe.model.name or f'BERT {recipe.model.size}, fresh weights'}")
    console.say(
        f"training  {plan.total_steps} steps of {training.global_batch_size} examples{accumulation}, "
        f"{plan.steps_per_epoch} an epoch; rate {training.learning_rate:g} {training.schedule}, "
        f"{plan.warmup_steps} warm-up steps; evaluation every {plan.eval_every_steps}"
    )
    seeds = ", ".join(map(str, training.seed))
    console.say(f"run       {run}, {'seeds' if len(training.seed) > 1 else 'seed'} {seeds}")
