"""`bertcli pretrain`: pretrain a model on a corpus, and score it on held-out text."""

from __future__ import annotations

from pathlib import Path

import torch

from bertcli.console import Console, format_seconds
from bertcli.models.from_scratch import build_from_config
from bertcli.pretraining.batches import ResolvedPhase, packing_efficiency
from bertcli.pretraining.job import PretrainJob
from bertcli.pretraining.setup import PretrainSetup, resolve_phases, set_up
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.plan import Plan
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.runs.folder import RunOptions, claim_run
from bertcli.runs.results import RunResults
from bertcli.training.resources import check_disk
from bertcli.training.startup import join_processes, open_run, report_finished
from bertcli.training.trainer import train


def pretrain(recipe: PretrainRecipe, run: Path, options: RunOptions) -> RunResults:
    """Pretrain as the recipe says; return the content of `results.json`.

    An interrupted run is resumed. If the run is already finished, its results are returned.

    Raises:
        BertcliError: any of its subclasses; the message says how to fix the problem.
    """
    processes, console = join_processes(recipe.hardware, options.console)
    claim = claim_run(run, dump_recipe(recipe), overwrite=options.overwrite)
    if claim.results is not None and not options.dry_run:
        return report_finished(processes, run, claim.results, console)
    with processes.main_process_first():  # the other processes read the cache it fills
        setup = set_up(recipe, options.mirror, console)
    plan, phases = resolve_phases(recipe, setup, processes.num_processes)
    job = PretrainJob(setup, plan, phases)
    _print_plan(console, setup, plan, phases, run)
    with torch.device("meta"):
        num_parameters = build_from_config(setup.config, setup.objective.model_class).num_parameters()
    if processes.is_main_process:
        check_disk(run, recipe, num_parameters)
    if options.dry_run:
        console.say("dry run: recipe, corpus, tokenizer, model, run folder and disk are fine; nothing was trained")
        return RunResults(dry_run=True, run=str(run))
    folder = open_run(processes, claim, console)
    results = train(job, folder, console)
    for name, value in results.mean_scores("validation").items():
        console.say(f"{name:<20}{value:.4f}")
    console.say(f"run       {folder.path}, trained in {format_seconds(results.train_seconds)}")
    console.say(f"report    {folder.report}")
    console.say(f"next      bertcli finetune glue/sst2 model.name={folder.path}")
    return results


def _print_plan(console: Console, setup: PretrainSetup, plan: Plan, phases: list[ResolvedPhase], run: Path) -> None:
    recipe, corpus = setup.recipe, setup.corpus
    sizes = f"{len(corpus.document_offsets) - 1:,} documents, {len(corpus.tokens):,} tokens"
    console.say(f"corpus    {sizes}; {len(setup.held_out):,} held-out sequences")
    console.say(f"tokenizer {len(setup.tokenizer):,} entries")
    new_model = f"{recipe.model.family} {recipe.model.size or 'with its default size'}, from scratch"
    console.say(f"model     {recipe.model.name or new_model}")
    if setup.first_position_id is not None:
        share = packing_efficiency(recipe, corpus, setup.train, setup.objective, phases[0].max_length)
        console.say(f"packing   {share:.1%} of the tokens are not padding")
    budget = "" if plan.budget_seconds is None else f" or {format_seconds(plan.budget_seconds)}"
    for phase in phases:
        console.say(
            f"training  {phase.global_batch_size} sequences per step, of up to {phase.max_length} tokens, "
            f"until {phase.end_share:.0%} of {plan.total_steps} steps{budget}"
        )
    training = recipe.training
    console.say(
        f"          {plan.steps_per_epoch} steps per epoch; learning rate {training.learning_rate:g}, "
        f"{training.schedule}, {plan.warmup_steps} warmup steps; evaluation every {plan.eval_every_steps} steps"
    )
    console.say(f"run       {run}, seed {training.seed[0]}")
