"""Multi-task fine-tuning: one shared encoder with a head per task; each optimizer step trains one task."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from accelerate import Accelerator

from bertcli.console import Console
from bertcli.data.batching import GlobalBatch
from bertcli.errors import RecipeError
from bertcli.files import write_text
from bertcli.finetuning.finished_run import has_same_files, join_fingerprints
from bertcli.finetuning.job import FinetuneJob
from bertcli.finetuning.run import note_duplicates
from bertcli.finetuning.setup import FinetuneSetup, set_up
from bertcli.inference.loaded_model import multitask_models
from bertcli.inference.scoring import Decoded, multitask_scores
from bertcli.metrics.scores import averaged_scores
from bertcli.models.freezing import LayerFreezer, build_freezer, lr_scales, reinitialize_layers
from bertcli.models.from_pretrained import save_model
from bertcli.models.shared_encoder import SharedEncoder
from bertcli.recipe.load import dump_recipe, recipe_task
from bertcli.recipe.plan import Plan, make_plan
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import MultitaskSection, Suite, recipes_by_name, run_folder
from bertcli.runs.claim import check_same_data, claim_run
from bertcli.runs.folder import RunOptions
from bertcli.runs.members import best_seed
from bertcli.runs.model_card import build_multitask_card
from bertcli.runs.results import RunResults
from bertcli.training.job import BestModel, Evaluation, Job, Logits, OnBatch
from bertcli.training.loop import Loss, Targets
from bertcli.training.memory import plan_memory
from bertcli.training.meters import RunClock
from bertcli.training.resources import check_disk
from bertcli.training.seeds import check_resumable, log_scores, train_seeds
from bertcli.training.startup import join_processes, open_run, report_finished

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

MIXING_SALT = 5  # makes the sampling of tasks independent of other draws from the same seed
LABELS_PREFIX = "labels_of_task_"  # followed by the index of the task, by which the loss is chosen


def finetune_multitask(suite: Suite, run: Path, options: RunOptions) -> RunResults:
    """Fine-tune one encoder on all tasks of the suite at once; return the content of `results.json`.

    `model/` holds one folder per task, with encoder, head and recipe, for `eval` and `predict`.

    Raises:
        BertcliError: if the run cannot start or fails; the message says how to fix the problem.
    """
    assert suite.multitask is not None
    recipes = recipes_by_name(suite)
    text = _recipe_text(recipes, suite.multitask)
    recipe = next(iter(recipes.values()))
    processes, console = join_processes(recipe.hardware, options.console)
    claim = claim_run(run, text, overwrite=options.overwrite)
    finished = None if options.dry_run else claim.results
    if finished is not None and has_same_files(recipes.values(), finished, options.mirror, console):
        return report_finished(run, finished, console, is_main_process=processes.is_main_process)
    _check_multitask(recipes.values())
    with processes.main_process_first(), console.waiting("reading rows"):  # the other processes read the cache it fills
        setups = {name: set_up(task_recipe, options.mirror, console.warn) for name, task_recipe in recipes.items()}
    with console.waiting("tokenizing"):
        sizes = {name: len(setup.encode("train")) for name, setup in setups.items()}
        epoch_sizes = [setup.examples_per_epoch for setup in setups.values()]
    if finished is not None:
        check_same_data(run, finished, _data_fingerprint(setups.values()))
        return report_finished(run, finished, console, is_main_process=processes.is_main_process)
    plan = make_plan(recipe, sum(sizes.values()), processes.num_processes, sum(epoch_sizes))
    probabilities = task_probabilities(epoch_sizes, suite.multitask)
    workloads = [setup.workload(plan) for setup in setups.values()]
    largest = max(workloads, key=lambda workload: workload.num_sequences * workload.length)
    model_class = next(iter(setups.values())).head.model_class
    memory = plan_memory(recipe.hardware, model_class, largest, processes.num_processes)
    plan = replace(plan, gradient_checkpointing=memory.gradient_checkpointing)
    _print_plan(console, setups, sizes, probabilities, plan)
    memory.report(console)
    if processes.is_main_process:
        for setup in setups.values():
            note_duplicates(console, setup)
            for note in setup.word_notes():
                console.warn(note)
        check_disk(run, recipe, len(recipes) * workloads[0].num_parameters)

    def build_job(seed: int) -> MultitaskJob:
        return MultitaskJob({name: setup.with_seed(seed) for name, setup in setups.items()}, plan, probabilities)

    if options.dry_run:
        if not options.overwrite:
            check_resumable(recipe.training.seed, build_job, run, console)
        console.say("dry run: recipes, data, labels, run folder and disk are fine; nothing was trained")
        return RunResults(dry_run=True, run=str(run))
    folder = open_run(processes, claim, console)
    results = train_seeds(
        recipe.training.seed, build_job, lambda job: f"{text}# seed {job.seed}\n", folder, processes, console
    )
    log_scores(console, results, folder, model=next(iter(multitask_models(best_seed(str(run))).values())))
    return results


def _print_plan(
    console: Console,
    setups: Mapping[str, FinetuneSetup],
    sizes: Mapping[str, int],
    probabilities: Iterable[float],
    plan: Plan,
) -> None:
    """Print the rows of each task [K], its share of the steps, and the length of training."""
    for (name, size), probability in zip(sizes.items(), probabilities, strict=True):
        notes = [f"; {note}" for note in (setups[name].target_note, setups[name].balance_note) if note]
        console.say(f"task      {name}: {size} training rows, {probability:.1%} of the steps{''.join(notes)}")
    setup = next(iter(setups.values()))
    if setup.recipe.model.add_tokens:
        console.say(f"tokenizer {setup.added_tokens.note}")
    batch_size = setup.recipe.training.global_batch_size
    console.say(f"training  {plan.total_steps} steps of {batch_size} examples, each of one task")


def _check_multitask(recipes: Collection[Recipe]) -> None:
    """Check that the recipes set only keys that multitask training supports.

    Raises:
        RecipeError: if a key is not supported; the error lists every problem.
    """
    recipe, problems = next(iter(recipes)), []
    training = recipe.training
    if training.strategy in ("features", "lora"):
        problems.append(f"training.strategy={training.strategy} is not supported in multitask training")
    if training.teacher is not None:
        problems.append("training.teacher is not supported in multitask training")
    for task_recipe in recipes:
        task, best_by = recipe_task(task_recipe), task_recipe.evaluation.best_by
        if not averaged_scores(task, best_by):
            problems.append(
                f"{task.name} is scored by {best_by or task.primary_metric}, where lower is better, but the mean score "
                "of the tasks selects the model; set task.metrics or evaluation.best_by to another score"
            )
    if any(task_recipe.answers.thresholds is not None for task_recipe in recipes):
        problems.append("answers.thresholds is not supported in multitask training")
    if any(task_recipe.answers.calibrated for task_recipe in recipes):
        problems.append("answers.calibrated is not supported in multitask training")
    if recipe.model.name is None and recipe.model.tokenizer is None:
        problems.append("multitask training requires a shared vocabulary: set model.name or model.tokenizer")
    if problems:
        raise RecipeError(problems)


class MultitaskJob(Job):
    """Fine-tune one encoder on several tasks; the mean of their scores selects the best model."""

    def __init__(self, setups: Mapping[str, FinetuneSetup], plan: Plan, probabilities: np.ndarray):
        self.plan, self.best_by = plan, "average"
        first = next(iter(setups.values()))
        self.recipe, self.tokenizer = first.recipe, first.tokenizer
        self._step_tasks = sample_step_tasks(probabilities, plan.total_steps, self.seed)
        self.jobs: dict[str, FinetuneJob] = {}
        for index, (name, setup) in enumerate(setups.items()):
            size, num_steps = len(setup.encode("train")), int((self._step_tasks == index).sum())
            task_plan = replace(plan, total_steps=num_steps, num_train_examples=size)
            self.jobs[name] = FinetuneJob(setup, task_plan)
        self._freezers: list[LayerFreezer] = []

    def build_model(self, console: Console) -> torch.nn.Module:
        """Build one encoder with a head for each task."""
        section = self._training
        shared = SharedEncoder([job.setup.build_model(console) for job in self.jobs.values()])
        models = [cast("PreTrainedModel", model) for model in shared.models]
        if section.reinit_layers:
            reinitialize_layers(models[0], section.reinit_layers)
        freezers = [build_freezer(model, section, self.plan) for model in models]
        self._freezers = [freezer for freezer in freezers if freezer is not None]
        return shared

    @property
    def _training(self) -> Any:
        return self.recipe.training

    def lr_scales(self, module: torch.nn.Module) -> dict[str, float]:
        """Return the learning-rate scales of layer-wise decay and of the heads."""
        shared = cast("SharedEncoder", module)
        return {
            f"models.{index}.{name}": scale
            for index, model in enumerate(shared.models)
            for name, scale in lr_scales(cast("PreTrainedModel", model), self._training).items()
        }

    @property
    def has_unused_parameters(self) -> bool:
        """Always True: a step uses only its task's head."""
        return True

    def seen_token_ids(self) -> np.ndarray:
        """Return the ids of the tokens that occur in the data of any task."""
        return reduce(np.union1d, (job.seen_token_ids() for job in self.jobs.values()))

    def set_trainable(self, step: int) -> None:
        """Freeze and unfreeze layers as the strategy requires at `step`."""
        for freezer in self._freezers:
            freezer.set_step(step)

    def save_model(self, module: torch.nn.Module, folder: Path) -> None:
        """Save a model for each task, with its recipe."""
        for (name, job), model in zip(self.jobs.items(), cast("SharedEncoder", module).models, strict=True):
            task_folder = run_folder(folder, name)
            save_model(cast("PreTrainedModel", model), job.tokenizer, task_folder)
            write_text(task_folder / "recipe.yaml", dump_recipe(job.setup.recipe))

    @property
    def data_fingerprint(self) -> str:
        """The hashes of the encoded rows of all tasks."""
        return _data_fingerprint(job.setup for job in self.jobs.values())

    @property
    def start_models(self) -> Mapping[str, str]:
        """Those of all tasks."""
        return {name: value for job in self.jobs.values() for name, value in job.start_models.items()}

    @property
    def tokens_per_micro_batch(self) -> float:
        """The average number of tokens in a micro-batch, over all tasks."""
        return statistics.fmean(job.tokens_per_micro_batch for job in self.jobs.values())

    @property
    def loss(self) -> Loss:
        """The loss of the task that the batch belongs to."""
        losses = [job.loss for job in self.jobs.values()]

        def mean_loss(outputs: Any, targets: Targets, counts: dict[str, int]) -> torch.Tensor:
            ((name, labels),) = targets.items()
            index = int(name.removeprefix(LABELS_PREFIX))
            return losses[index](outputs, {"labels": labels}, {"labels": counts[name]})

        return mean_loss

    def batches(self, accelerator: Accelerator, start_step: int, clock: RunClock) -> Iterator[GlobalBatch]:
        """Yield one batch per step, each from a single task that seed and step determine."""
        start_steps = np.bincount(self._step_tasks[:start_step], minlength=len(self.jobs))
        streams = [
            job.batches(accelerator, int(task_start_step), clock)
            for job, task_start_step in zip(self.jobs.values(), start_steps, strict=True)
        ]
        for index in self._step_tasks[start_step:]:
            yield _with_task_index(next(streams[index]), int(index))

    def evaluate(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        split: str = "validation",
        on_batch: OnBatch = lambda num_items: None,
    ) -> Evaluation:
        """Compute the scores of each task, prefixed with its name, and their mean."""
        pairs = zip(self.jobs.items(), cast("SharedEncoder", model).models, strict=True)
        each = {name: job.evaluate(accelerator, task_model, split, on_batch) for (name, job), task_model in pairs}
        logits = {f"{name}/{key}": values for name, task in each.items() for key, values in task.logits.items()}
        scores = multitask_scores(self._recipes, {name: task.scores for name, task in each.items()})
        return Evaluation(scores, logits, {name: task.decoded for name, task in each.items()})

    def evaluate_best(
        self, accelerator: Accelerator, model: Path, logits: Logits, decoded: Mapping[str, Decoded] | None
    ) -> BestModel:
        """Return what the model of each task answers; scores and files are prefixed with the task's name."""
        all_tasks = BestModel()
        for name, job in self.jobs.items():
            task_folder, prefix = run_folder(model, name), f"{name}/"
            own = {key.removeprefix(prefix): values for key, values in logits.items() if key.startswith(prefix)}
            best = job.evaluate_best(accelerator, task_folder, own, None if decoded is None else decoded[name])
            for split, scores in best.scores.items():
                all_tasks.scores.setdefault(split, {}).update({prefix + score: scores[score] for score in scores})
            for split, intervals in best.intervals.items():
                named = {prefix + score: interval for score, interval in intervals.items()}
                all_tasks.intervals.setdefault(split, {}).update(named)
            all_tasks.predictions |= {f"{task_folder.name}-{file}": lines for file, lines in best.predictions.items()}
            all_tasks.answers |= {f"{task_folder.name}-{file}": answers for file, answers in best.answers.items()}
        return all_tasks

    @property
    def _recipes(self) -> dict[str, Recipe]:
        return {name: job.setup.recipe for name, job in self.jobs.items()}

    def describe(self) -> dict[str, Any]:
        """Return the tasks and the model, and the hashes of the files and runs that the model came from."""
        section = next(iter(self.jobs.values())).setup.recipe.model
        size = section.size if section.name is None else None
        files = join_fingerprints(job.setup.source_fingerprint for job in self.jobs.values())
        described: dict[str, Any] = {"task": " + ".join(self.jobs), "head": None, "model": section.name, "size": size}
        if self.start_models:
            described["start_models"] = dict(self.start_models)
        return described | {"source_fingerprint": files}

    def card(self, results: RunResults) -> str:
        """Return the model card, for the models of all tasks."""
        recipes = {run_folder(Path(), name).name: recipe for name, recipe in self._recipes.items()}
        return build_multitask_card(results, recipes)


def _data_fingerprint(setups: Iterable[FinetuneSetup]) -> str:
    """Return the hashes of the encoded rows of all tasks."""
    return " ".join(setup.data_fingerprint for setup in setups)


def _with_task_index(batch: GlobalBatch, index: int) -> GlobalBatch:
    """Add the index of its task to a batch, as the input `task` and in the name of the labels."""
    import torch

    labels_name = f"{LABELS_PREFIX}{index}"
    micro_batches = [
        {labels_name if name == "labels" else name: value for name, value in micro_batch.items()}
        | {"task": torch.full((len(micro_batch["input_ids"]),), index)}
        for micro_batch in batch.micro_batches
    ]
    return replace(batch, micro_batches=micro_batches, num_targets={labels_name: batch.num_targets["labels"]})


def _recipe_text(recipes: Mapping[str, Recipe], multitask: MultitaskSection) -> str:
    """Return the `recipe.yaml` of a multitask run: how tasks are sampled, and the recipe of each task as a comment."""
    options = multitask.model_dump().items()
    mixing = ", ".join(f"{key}: {'null' if value is None else value}" for key, value in options)
    texts = [f"\n# {name}\n{textwrap.indent(dump_recipe(recipe), '# ')}" for name, recipe in recipes.items()]
    return f"suite: [{', '.join(recipes)}]\nmultitask: {{{mixing}}}\n{''.join(texts)}"


def task_probabilities(sizes: Sequence[int], mixing: MultitaskSection) -> np.ndarray:
    """Return the probability that a step trains each of K tasks, given their numbers of training examples. [K]"""
    counts = np.minimum(np.asarray(sizes, dtype=np.float64), mixing.max_examples or np.inf)
    if mixing.sampling == "equal":
        counts = np.ones_like(counts)
    elif mixing.sampling == "temperature":
        counts **= 1 / mixing.temperature
    return counts / counts.sum()


def sample_step_tasks(probabilities: np.ndarray, total_steps: int, seed: int) -> np.ndarray:
    """Return the index of the task that each step trains; it depends only on the arguments. [total_steps]"""
    return np.random.default_rng((seed, MIXING_SALT)).choice(len(probabilities), size=total_steps, p=probabilities)
