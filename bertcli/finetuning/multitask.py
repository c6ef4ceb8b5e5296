"""`bertcli finetune` for tasks learned together: one encoder, a head for each, every step of one task."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from accelerate import Accelerator

from bertcli.data.batching import GlobalBatch
from bertcli.errors import RecipeError
from bertcli.files import write_text
from bertcli.finetuning.job import FinetuneJob
from bertcli.finetuning.setup import Prepared, prepare
from bertcli.inference.loaded_model import models_together
from bertcli.inference.scoring import scores_together
from bertcli.models.freezing import Unfreezing, rate_factors, reinitialise, unfreezing_of
from bertcli.models.from_pretrained import save_model
from bertcli.models.shared_encoder import SharedEncoder
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.plan import Plan, make_plan
from bertcli.recipe.schema import Recipe
from bertcli.recipe.suite import Mixing, Suite, run_folder, singles
from bertcli.runs.folder import RunOptions, best_seed, check_run_folder
from bertcli.runs.model_card import write_shared_card
from bertcli.training.job import Answers, Job, OnBatch, Scores
from bertcli.training.loop import Loss, Targets
from bertcli.training.meters import Clock
from bertcli.training.resources import check_disk
from bertcli.training.seeds import say_results, train_seeds
from bertcli.training.startup import join, open_together, read_finished

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LABELS = "labels of task "  # before the number of the task whose labels they are


def finetune_together(
    suite: Suite,
    run: Path,
    options: RunOptions,
) -> dict[str, Any]:
    """Fine-tune one encoder on all recipes of the suite at once; return what `results.json` holds.

    `model/` holds a folder for each task, with encoder, head and recipe, for `eval` and `predict`.

    Raises:
        BertcliError: one of its kinds, each with its cure.
    """
    assert suite.together is not None
    recipes = singles(suite)
    text = _dump(recipes, suite.together)
    recipe = next(iter(recipes.values()))
    processes, console = join(recipe.hardware, options.console)
    finished = None if options.dry_run or options.overwrite else read_finished(processes, run, text, console)
    if finished is not None:
        return finished
    _refuse(recipes.values())
    with processes.main_process_first(), console.waiting("reading rows"):  # the others find its cache
        prepared = {name: prepare(one, options.mirror) for name, one in recipes.items()}
    with console.waiting("tokenising"):
        sizes = {name: len(one.encode("train")) for name, one in prepared.items()}
    plan = make_plan(recipe, sum(sizes.values()), processes.num_processes)
    shares = mixing_shares(list(sizes.values()), suite.together)
    for (name, size), share in zip(sizes.items(), shares, strict=True):
        console.say(f"task      {name}: {size} training rows, {share:.1%} of the steps")
    console.say(f"training  {plan.total_steps} steps of {recipe.training.global_batch_size} examples, each of one task")
    if processes.is_main_process:
        check_run_folder(run, text, overwrite=options.overwrite)
        check_disk(run, recipe, len(recipes) * next(iter(prepared.values())).count_parameters())
    if options.dry_run:
        console.say("dry run: recipes, data, labels, run folder and disk are fine; nothing was trained")
        return {"dry_run": True, "run": str(run)}
    folder = open_together(processes, run, text, console, overwrite=options.overwrite)
    results = train_seeds(
        recipe.training.seed,
        lambda seed: TogetherJob({name: one.with_seed(seed) for name, one in prepared.items()}, plan, shares),
        lambda job: f"{text}# seed {job.seed}\n",
        folder,
        processes,
        console,
    )
    say_results(console, results, folder, model=next(iter(models_together(best_seed(str(run))).values())))
    return results


def _refuse(recipes: Collection[Recipe]) -> None:
    """Refuse what is made for one task."""
    recipe, problems = next(iter(recipes)), []
    training = recipe.training
    if training.strategy in ("features", "lora"):
        problems.append(f"training.strategy={training.strategy} is for one task, not for several together")
    if training.teacher is not None:
        problems.append("training.teacher is for one task, not for several together")
    if any(one.answers.thresholds is not None for one in recipes):
        problems.append("answers.thresholds are for one task, not for several together")
    if recipe.model.name is None and recipe.model.tokenizer is None:
        problems.append("tasks that are learned together need one vocabulary: name a model.name or a model.tokenizer")
    if problems:
        raise RecipeError(problems)


class TogetherJob(Job):
    """Tasks by name, learned together. The best model has the best mean of their scores."""

    def __init__(self, prepared: Mapping[str, Prepared], plan: Plan, shares: np.ndarray):
        self.plan, self.best_by = plan, "average"
        first = next(iter(prepared.values()))
        self.recipe, self.tokenizer = first.recipe, first.tokenizer
        self._tasks = tasks_of_steps(shares, plan.total_steps, self.seed)
        self.parts: dict[str, FinetuneJob] = {}
        for number, (name, one) in enumerate(prepared.items()):
            size, num_steps = len(one.encode("train")), int((self._tasks == number).sum())
            own = replace(plan, total_steps=num_steps, num_train_examples=size)
            self.parts[name] = FinetuneJob(one, own)
        self._unfreezing: list[Unfreezing] = []

    def build_model(self) -> torch.nn.Module:
        """One encoder and a head for each task."""
        section = self._training
        shared = SharedEncoder([part.prepared.build_model() for part in self.parts.values()])
        models = [cast("PreTrainedModel", model) for model in shared.models]
        if section.reinitialise_layers:
            reinitialise(models[0], section.reinitialise_layers)
        found = [unfreezing_of(model, section, self.plan) for model in models]
        self._unfreezing = [unfreezing for unfreezing in found if unfreezing is not None]
        return shared

    @property
    def _training(self) -> Any:
        return self.recipe.training

    def rate_factors(self, module: torch.nn.Module) -> dict[str, float]:
        """Those of layer-wise decay and of the heads."""
        shared = cast("SharedEncoder", module)
        return {
            f"models.{number}.{name}": factor
            for number, model in enumerate(shared.models)
            for name, factor in rate_factors(cast("PreTrainedModel", model), self._training).items()
        }

    @property
    def has_idle_weights(self) -> bool:
        """Each step leaves the heads of the other tasks alone."""
        return True

    def met_ids(self) -> np.ndarray:
        """Those that any of the tasks meets."""
        return reduce(np.union1d, (part.met_ids() for part in self.parts.values()))

    def set_learning(self, step: int) -> None:
        """Freeze and unfreeze as the strategy says."""
        for unfreezing in self._unfreezing:
            unfreezing.set_for(step)

    def save_model(self, module: torch.nn.Module, folder: Path) -> None:
        """Write a model for each task, with its recipe."""
        for (name, part), model in zip(self.parts.items(), cast("SharedEncoder", module).models, strict=True):
            own = run_folder(folder, name)
            save_model(cast("PreTrainedModel", model), part.tokenizer, own)
            write_text(own / "recipe.yaml", dump_recipe(part.prepared.recipe))

    @property
    def loss(self) -> Loss:
        """The loss of the task that a batch is of."""
        losses = [part.loss for part in self.parts.values()]

        def mean_loss(outputs: Any, targets: Targets, counts: dict[str, int]) -> torch.Tensor:
            ((name, labels),) = targets.items()
            number = int(name.removeprefix(LABELS))
            return losses[number](outputs, {"labels": labels}, {"labels": counts[name]})

        return mean_loss

    def batches(self, accelerator: Accelerator, start_step: int, clock: Clock) -> Iterator[GlobalBatch]:
        """A batch of one task for each step; which one is a function of the seed and the step."""
        done = np.bincount(self._tasks[:start_step], minlength=len(self.parts))
        streams = [
            part.batches(accelerator, int(steps), clock) for part, steps in zip(self.parts.values(), done, strict=True)
        ]
        for number in self._tasks[start_step:]:
            yield _of_task(next(streams[number]), int(number))

    def score(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        split: str = "validation",
        on_batch: OnBatch = lambda num_items: None,
    ) -> dict[str, float]:
        """The scores of each task, named after it, and their mean."""
        each = zip(self.parts.items(), cast("SharedEncoder", model).models, strict=True)
        scores = {name: part.score(accelerator, one, split, on_batch) for (name, part), one in each}
        return scores_together(self._recipes, scores)

    def look_back(self, accelerator: Accelerator, model: Path) -> tuple[Scores, Answers]:
        """What each task's model scores on further splits, named after the task, and its answers in a file of it."""
        scores: Scores = {}
        answers: Answers = {}
        for name, part in self.parts.items():
            own = run_folder(model, name)
            further, of_part = part.look_back(accelerator, own)
            for split, values in further.items():
                scores.setdefault(split, {}).update({f"{name}/{metric}": value for metric, value in values.items()})
            answers |= {f"{own.name}-{file}": lines for file, lines in of_part.items()}
        return scores, answers

    @property
    def _recipes(self) -> dict[str, Recipe]:
        return {name: part.prepared.recipe for name, part in self.parts.items()}

    def describe(self) -> dict[str, Any]:
        """Tasks and model."""
        section = self.parts[next(iter(self.parts))].prepared.recipe.model
        size = section.size if section.name is None else None
        return {"task": " + ".join(self.parts), "head": None, "model": section.name, "size": size}

    def card(self, results: dict[str, Any]) -> str:
        """The card of the models of one run."""
        return write_shared_card(results, {run_folder(Path(), name).name: one for name, one in self._recipes.items()})


def _of_task(batch: GlobalBatch, number: int) -> GlobalBatch:
    """A batch that says which task it is of."""
    import torch

    name = f"{LABELS}{number}"
    micros = [
        {name if key == "labels" else key: value for key, value in micro.items()}
        | {"task": torch.full((len(micro["input_ids"]),), number)}
        for micro in batch.micro_batches
    ]
    return replace(batch, micro_batches=micros, num_targets={name: batch.num_targets["labels"]})


def _dump(recipes: Mapping[str, Recipe], together: Mixing) -> str:
    """What stands in the run folder: the mixing, and all that is learned together."""
    given = together.model_dump().items()
    mixing = ", ".join(f"{key}: {'null' if value is None else value}" for key, value in given)
    texts = [f"\n# {name}\n{textwrap.indent(dump_recipe(one), '# ')}" for name, one in recipes.items()]
    return f"suite: [{', '.join(recipes)}]\ntogether: {{{mixing}}}\n{''.join(texts)}"


MIXING_SALT = 5  # so that this choice draws other numbers than the order of the rows does


def mixing_shares(sizes: Sequence[int], mixing: Mixing) -> np.ndarray:
    """The share of the steps that each task gets, from its number of training rows. [K]"""
    counts = np.minimum(np.asarray(sizes, dtype=np.float64), mixing.cap or np.inf)
    if mixing.kind == "equal":
        counts = np.ones_like(counts)
    elif mixing.kind == "temperature":
        counts **= 1 / mixing.temperature
    return counts / counts.sum()


def tasks_of_steps(shares: np.ndarray, total_steps: int, seed: int) -> np.ndarray:
    """The number of the task of each step, a function of the seed alone. [total_steps]"""
    return np.random.default_rng((seed, MIXING_SALT)).choice(len(shares), size=total_steps, p=shares)
