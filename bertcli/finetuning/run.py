"""Fine-tune one recipe: claim the run folder, load and check the data, plan, then train each seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from bertcli.console import Console
from bertcli.errors import shortened
from bertcli.finetuning.distillation import load_teacher
from bertcli.finetuning.finished_run import has_same_files
from bertcli.finetuning.job import FinetuneJob
from bertcli.finetuning.setup import FinetuneSetup, set_up
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.plan import Plan, evaluation_note, make_plan
from bertcli.recipe.schema import Recipe
from bertcli.runs.claim import check_same_data, claim_run
from bertcli.runs.folder import RunOptions
from bertcli.runs.members import seed_folders
from bertcli.runs.results import RunResults
from bertcli.tasks.task import FoldTask
from bertcli.training.memory import MemoryPlan, plan_memory
from bertcli.training.resources import check_disk
from bertcli.training.seeds import check_resumable, log_scores, train_seeds
from bertcli.training.startup import join_processes, open_run, report_finished

MAX_LABELS_SHOWN = 10
MANY_ROWS = 20_000  # tokenizing more rows than this takes seconds, so it is announced


def finetune(recipe: Recipe, run: Path, options: RunOptions) -> RunResults:
    """Fine-tune as the recipe says, once per seed; return the content of `results.json`.

    With one seed `run` is the run folder; with several it holds one run folder per seed (`seed-1` …) and a
    `results.json` with mean and standard deviation. An existing run is resumed; if it is finished, its results
    are returned, unless the data have changed.

    Raises:
        BertcliError: if the run cannot start or fails; the message says how to fix the problem.
    """
    for folder in seed_folders(run, recipe.training.seed):
        if folder in options.failed:
            raise options.failed[folder]
    processes, console = join_processes(recipe.hardware, options.console)
    claim = claim_run(run, dump_recipe(recipe), overwrite=options.overwrite)
    finished = None if options.dry_run else claim.results
    if finished is not None and has_same_files([recipe], finished, options.mirror, console):
        return report_finished(run, finished, console, is_main_process=processes.is_main_process)
    with processes.main_process_first(), console.waiting("reading rows"):  # the other processes read the cache it fills
        setup = set_up(recipe, options.mirror, console.warn)
    if finished is not None:
        check_same_data(run, finished, setup.data_fingerprint)
        return report_finished(run, finished, console, is_main_process=processes.is_main_process)
    if len(setup.rows["train"]) > MANY_ROWS:
        console.say(f"data      tokenizing {len(setup.rows['train'])} training rows")
    with console.waiting("tokenizing"):
        num_items = len(setup.encode("train"))
        plan = make_plan(recipe, num_items, processes.num_processes, setup.examples_per_epoch)
        setup.encode("validation")
    workload = setup.workload(plan)
    memory = plan_memory(recipe.hardware, setup.head.model_class, workload, processes.num_processes)
    plan = replace(plan, gradient_checkpointing=memory.gradient_checkpointing)
    _print_plan(console, setup, plan, memory, run)
    if processes.is_main_process:
        note_duplicates(console, setup)
        for note in setup.word_notes():
            console.warn(note)
        check_disk(run, recipe, workload.num_parameters)

    def build_job(seed: int) -> FinetuneJob:
        return FinetuneJob(setup.with_seed(seed), plan, options.reason_to_stop)

    if options.dry_run:
        if not options.overwrite:
            check_resumable(recipe.training.seed, build_job, run, console)
        model = FinetuneJob(setup, plan).build_model(console)
        if recipe.training.teacher is not None:
            load_teacher(setup, model)
        _warn_about_rows(console, setup, ("train", "validation"))
        console.say("dry run: recipe, data, labels, model, run folder and disk are fine; nothing was trained")
        return RunResults(dry_run=True, run=str(run))
    run_folder = open_run(processes, claim, console)
    _warn_about_rows(console, setup, setup.rows)
    results = train_seeds(
        recipe.training.seed, build_job, lambda job: dump_recipe(job.recipe), run_folder, processes, console
    )
    log_scores(console, results, run_folder)
    return results


def _warn_about_rows(console: Console, setup: FinetuneSetup, splits: Iterable[str]) -> None:
    for split in splits:
        with console.waiting("tokenizing"):
            notes = setup.row_warnings(split)
        console.warn_about_rows(notes, where=f"{split} rows")


def note_duplicates(console: Console, setup: FinetuneSetup) -> None:
    """Warn about texts that occur twice in the user's files; for published datasets, only print a note."""
    with console.waiting("comparing the splits"):
        notes = list(setup.duplicate_notes())
    for note in notes:
        if setup.task.files is None:
            console.say(f"note      {setup.task.name}: {note}")
        else:
            console.warn(note)


def _print_plan(console: Console, setup: FinetuneSetup, plan: Plan, memory: MemoryPlan, run: Path) -> None:
    recipe, training = setup.recipe, setup.recipe.training
    names = setup.head.labels
    omitted = f", … {len(names)} labels" if len(names) > MAX_LABELS_SHOWN else ""
    labels = f" ({shortened(', '.join(names[:MAX_LABELS_SHOWN]))}{omitted})" if names else ""
    rows = {split: len(split_rows) for split, split_rows in setup.rows.items()}
    windows = f" in {plan.num_train_examples} windows" if plan.num_train_examples > rows["train"] else ""
    accumulation = f" in {plan.accumulation_steps} micro-batches" if plan.accumulation_steps > 1 else ""
    targets = f"; {setup.target_note}" if setup.target_note else ""
    console.say(f"task      {setup.task.name}: {setup.task.answer_kind}{labels}{targets}")
    skipped = f"; skipped {setup.num_skipped} rows without a label" if setup.num_skipped else ""
    more = skipped + (f"; {setup.balance_note}" if setup.balance_note else "")
    console.say(f"data      {rows['train']} training{windows} and {rows['validation']} validation rows{more}")
    if isinstance(setup.task, FoldTask):
        console.say(f"fold      {setup.task.fold} of {setup.task.num_folds} of the training rows{setup.task.division}")
    console.say(f"model     {setup.source.name if setup.source else f'BERT {recipe.model.size}, from scratch'}")
    if recipe.model.add_tokens:
        console.say(f"tokenizer {setup.added_tokens.note}")
    console.say(
        f"training  {plan.total_steps} steps of {training.global_batch_size} examples{accumulation}, "
        f"{plan.steps_per_epoch} per epoch; learning rate {training.learning_rate:g}, {training.schedule}, "
        f"{plan.warmup_steps} warmup steps; evaluation every {plan.eval_every_steps} steps"
    )
    memory.report(console)
    encoded = setup.encode("train")
    tokens_per_step = len(encoded.input_ids) / len(encoded) * training.global_batch_size
    num_tokens = len(setup.encode("validation").input_ids)
    is_fold = isinstance(setup.task, FoldTask)
    cure = "with more folds (data.folds)" if is_fold else "on fewer rows (data.max_eval_examples)"
    note = evaluation_note(plan, tokens_per_step, num_tokens, cure)
    if note is not None and training.strategy != "features":  # whose frozen encoder processes each row only once
        console.say(note)
    seeds = ", ".join(map(str, training.seed))
    console.say(f"run       {run}, {'seeds' if len(training.seed) > 1 else 'seed'} {seeds}")
