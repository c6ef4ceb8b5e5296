"""`bertcli pretrain`: pretrain a model on a corpus, and score it on held-out text."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers

from bertcli.console import Console, format_seconds, format_size
from bertcli.data.corpus_reading import source_files
from bertcli.models.from_pretrained import invalid_config_errors
from bertcli.models.from_scratch import build_from_config
from bertcli.pretraining.batches import ResolvedPhase, packing_efficiency
from bertcli.pretraining.job import PretrainJob
from bertcli.pretraining.objective import Objective
from bertcli.pretraining.setup import (
    PretrainSetup,
    check_recipe,
    describe_layout,
    pretraining_workload,
    resolve_phases,
    set_up,
)
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.plan import Plan, complete_plan, evaluation_note
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.runs.claim import claim_run
from bertcli.runs.folder import RunOptions
from bertcli.runs.members import best_seed
from bertcli.runs.results import RunResults
from bertcli.training.memory import MemoryPlan, plan_memory
from bertcli.training.resources import check_disk
from bertcli.training.startup import join_processes, open_run, report_finished
from bertcli.training.trainer import train

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def pretrain(recipe: PretrainRecipe, run: Path, options: RunOptions) -> RunResults:
    """Pretrain as the recipe says; return the content of `results.json`.

    An interrupted run is resumed. If the run is already finished, its results are returned.

    Raises:
        BertcliError: if anything fails; the message says how to fix the problem.
    """
    processes, console = join_processes(recipe.hardware, options.console)
    claim = claim_run(run, dump_recipe(recipe), overwrite=options.overwrite)
    if claim.results is not None and not options.dry_run:
        return report_finished(run, claim.results, console, is_main_process=processes.is_main_process)
    if options.dry_run:
        _dry_run(recipe, run, options.mirror, console)
        return RunResults(dry_run=True, run=str(run))
    with processes.main_process_first():  # the other processes read the cache it fills
        setup = set_up(recipe, options.mirror, console)
    plan, phases = resolve_phases(recipe, setup, processes.num_processes)
    num_parameters = _count_parameters(recipe, setup.config, setup.objective)
    memory = _plan_memory(recipe, setup.config, setup.objective, num_parameters, processes.num_processes)
    plan = replace(plan, gradient_checkpointing=memory.gradient_checkpointing)
    job = PretrainJob(setup, plan, phases)
    _print_plan(console, setup, plan, phases, run)
    memory.report(console)
    if processes.is_main_process:
        check_disk(run, recipe, num_parameters)
    folder = open_run(processes, claim, console)
    results = train(job, folder, console)
    for name, value in results.mean_scores("validation").items():
        console.say(f"{name:<20}{value:.4f}")
    console.say(f"run       {folder.path}, trained in {format_seconds(results.train_seconds)}")
    console.say(f"report    {folder.report}")
    console.say(f"next      bertcli finetune glue/sst2 model.name={folder.path}")
    return results


def _dry_run(recipe: PretrainRecipe, run: Path, mirror: Path | None, console: Console) -> None:
    """Check the recipe, the beginning of the corpus, the model and the disk, and print what a run would do."""
    config, objective, vocab_size, added_tokens = check_recipe(recipe, mirror)
    training = recipe.training
    if training.max_steps is not None:
        complete_plan(
            recipe,
            num_train_examples=0,
            steps_per_epoch=1,
            total_steps=training.max_steps,
            global_batch_size=training.global_batch_size,
            num_processes=1,
        )
    num_parameters = _count_parameters(recipe, config, objective)
    check_disk(run, recipe, num_parameters)
    for source in recipe.corpus.sources:
        paths = source_files(source)
        size = f"{len(paths)} files, {format_size(sum(path.stat().st_size for path in paths))}" if paths else None
        console.say(f"corpus    {size or source.dataset}, to be tokenized")
        if (note := describe_layout(source)) is not None:
            console.say(f"corpus    {note}")
    trained = f"{recipe.tokenizer.kind}, up to {config.vocab_size:,} entries, to be trained on the corpus"
    console.say(f"tokenizer {trained if vocab_size is None else f'{vocab_size:,} entries'}")
    if recipe.tokenizer.add_tokens:
        console.say(f"tokenizer {added_tokens.note}")
    _print_model(console, recipe)
    length = f"{training.epochs:g} epochs" if training.max_tokens is None else f"{training.max_tokens:,} tokens"
    total = length if training.max_steps is None else f"{training.max_steps} steps"
    for phase in recipe.phases:
        batch_size = phase.global_batch_size or training.global_batch_size
        console.say(
            f"training  {batch_size} sequences per step, of up to {phase.max_length} tokens, "
            f"for {phase.fraction:.0%} of {total}"
        )
    _plan_memory(recipe, config, objective, num_parameters).report(console)
    console.say(f"run       {run}, seed {training.seed[0]}")
    console.say("dry run: recipe, corpus files, model, run folder and disk are fine; nothing was tokenized or trained")


def _plan_memory(
    recipe: PretrainRecipe, config: PretrainedConfig, objective: Objective, num_parameters: int, num_processes: int = 1
) -> MemoryPlan:
    workload = pretraining_workload(recipe, config, objective, num_parameters, num_processes)
    return plan_memory(recipe.hardware, objective.model_class, workload, num_processes)


def _count_parameters(recipe: PretrainRecipe, config: PretrainedConfig, objective: Objective) -> int:
    with torch.device("meta"):
        if recipe.model.name is None:
            return int(build_from_config(config, objective.model_class).num_parameters())
        with invalid_config_errors(recipe.model.name):
            return int(getattr(transformers, objective.model_class).from_config(config).num_parameters())


def _print_model(console: Console, recipe: PretrainRecipe) -> None:
    new_model = f"{recipe.model.family} {recipe.model.size or 'with its default size'}, from scratch"
    console.say(f"model     {best_seed(recipe.model.name) if recipe.model.name else new_model}")


def _print_plan(console: Console, setup: PretrainSetup, plan: Plan, phases: list[ResolvedPhase], run: Path) -> None:
    recipe, corpus = setup.recipe, setup.corpus
    sizes = f"{len(corpus.document_offsets) - 1:,} documents, {len(corpus.tokens):,} tokens"
    console.say(f"corpus    {sizes}; {len(setup.held_out):,} held-out sequences")
    console.say(f"tokenizer {len(setup.tokenizer):,} entries; {corpus.unknown_share:.2%} of the tokens are unknown")
    if recipe.tokenizer.add_tokens:
        console.say(f"tokenizer {setup.added_tokens.note}")
    _print_model(console, recipe)
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
    tokens_per_step = statistics.fmean(phase.global_batch_size * phase.max_length for phase in phases)
    num_held_out = int(setup.held_out.lengths.sum())
    note = evaluation_note(plan, tokens_per_step, num_held_out, "on less text (corpus.max_held_out_tokens)")
    if note is not None and plan.budget_seconds is None:
        console.say(note)
    console.say(f"run       {run}, seed {training.seed[0]}")
