"""…"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.console import Console
from bertcli.finetuning.distillation import open_teacher
from bertcli.finetuning.job import FinetuneJob
from bertcli.finetuning.setup import Prepared, prepare
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.plan import Plan, make_plan
from bertcli.recipe.schema import Recipe
from bertcli.runs.folder import RunOptions, check_run_folder
from bertcli.training.resources import check_disk
from bertcli.training.seeds import say_results, train_seeds
from bertcli.training.startup import join, open_together, read_finished

if TYPE_CHECKING:
    pass

MANY_ROWS = 20_000  # whose tokens take seconds


def finetune(
    recipe: Recipe,
    run: Path,
    options: RunOptions,
) -> dict[str, Any]:
    """Fine-tune as the recipe says, once for each of its seeds; return what `results.json` holds.

    With one seed `run` is the run folder; with several it holds one run folder a seed (`seed-1` …) and a
    `results.json` with mean and standard deviation. A run that is there already is resumed, or just read if finished.

    Raises:
        BertcliError: one of its kinds, each with its cure.
    """
    processes, console = join(recipe.hardware, options.console)
    finished = (
        None if options.dry_run or options.overwrite else read_finished(processes, run, dump_recipe(recipe), console)
    )
    if finished is not None:
        return finished
    with processes.main_process_first(), console.waiting("reading rows"):  # the others find its cache
        prepared = prepare(recipe, options.mirror)
    if len(prepared.rows["train"]) > MANY_ROWS:
        console.say(f"tokens    of {len(prepared.rows['train'])} training rows are made")
    with console.waiting("tokenising"):
        plan = make_plan(recipe, len(prepared.encode("train")), processes.num_processes)
    _say_plan(console, prepared, plan, run)
    if processes.is_main_process:
        check_run_folder(run, dump_recipe(recipe), overwrite=options.overwrite)
        check_disk(run, recipe, prepared.count_parameters())
    if options.dry_run:
        model = FinetuneJob(prepared, plan).build_model()
        if recipe.training.teacher is not None:
            open_teacher(prepared, model)
        console.say("dry run: recipe, data, labels, model, run folder and disk are fine; nothing was trained")
        return {"dry_run": True, "run": str(run)}
    folder = open_together(processes, run, dump_recipe(recipe), console, overwrite=options.overwrite)
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
