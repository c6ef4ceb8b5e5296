"""`bertcli pretrain`: from a corpus to a run folder with a pretrained model and its held-out scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bertcli.console import Console, format_seconds
from bertcli.models.from_scratch import build_from_config
from bertcli.pretraining.batches import Stage, packing_efficiency
from bertcli.pretraining.job import PretrainJob
from bertcli.pretraining.setup import Pretraining, plan_stages, prepare
from bertcli.recipe.load import dump_recipe
from bertcli.recipe.plan import Plan
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.runs.folder import RunOptions, check_run_folder
from bertcli.training.resources import check_disk
from bertcli.training.startup import join, open_together, read_finished
from bertcli.training.trainer import train

if TYPE_CHECKING:
    pass


def pretrain(
    recipe: PretrainRecipe,
    run: Path,
    options: RunOptions,
) -> dict[str, Any]:
    """Pretrain as the recipe says; return what `results.json` holds. The same call again goes on where it stopped.

    A run that is finished is just read.

    Raises:
        BertcliError: one of its kinds, each with its cure.
    """
    processes, console = join(recipe.hardware, options.console)
    finished = (
        None if options.dry_run or options.overwrite else read_finished(processes, run, dump_recipe(recipe), console)
    )
    if finished is not None:
        return finished
    with processes.main_process_first():  # the others find its cache
        prepared = prepare(recipe, options.mirror, console)
    plan, stages = plan_stages(recipe, prepared, processes.num_processes)
    job = PretrainJob(prepared, plan, stages)
    _say_plan(console, prepared, plan, stages, run)
    with torch.device("meta"):
        num_parameters = build_from_config(prepared.config, prepared.objective.model_class).num_parameters()
    if processes.is_main_process:
        check_run_folder(run, dump_recipe(recipe), overwrite=options.overwrite)
        check_disk(run, recipe, num_parameters)
    if options.dry_run:
        console.say("dry run: recipe, corpus, tokenizer, model, run folder and disk are fine; nothing was trained")
        return {"dry_run": True, "run": str(run)}
    folder = open_together(processes, run, dump_recipe(recipe), console, overwrite=options.overwrite)
    results = train(job, folder, console)
    for name, value in results["metrics"]["validation"].items():
        console.say(f"{name:<20}{value:.4f}")
    console.say(f"run       {folder.path}, {format_seconds(results['train_seconds'])} of training")
    console.say(f"report    {folder.report}")
    console.say(f"next      bertcli finetune glue/sst2 model.name={folder.path}")
    return results


def _say_plan(console: Console, prepared: Pretraining, plan: Plan, stages: list[Stage], run: Path) -> None:
    recipe, corpus = prepared.recipe, prepared.corpus
    sizes = f"{len(corpus.documents) - 1:,} documents, {len(corpus.tokens):,} tokens"
    console.say(f"corpus    {sizes}; {len(prepared.held_out):,} held-out sequences")
    console.say(f"tokenizer {len(prepared.tokenizer):,} entries")
    fresh = f"{recipe.model.family} {recipe.model.size or 'as its defaults are'}, fresh weights"
    console.say(f"model     {recipe.model.name or fresh}")
    if prepared.first_position is not None:
        share = packing_efficiency(recipe, corpus, prepared.train, prepared.objective, stages[0].max_length)
        console.say(f"packing   {share:.1%} of the places in a row are filled")
    limit = "" if plan.budget_seconds is None else f" or {format_seconds(plan.budget_seconds)}"
    for stage in stages:
        console.say(
            f"training  {stage.global_batch_size} sequences of up to {stage.max_length} tokens until "
            f"{stage.end_share:.0%} of {plan.total_steps} steps{limit} are done"
        )
    training = recipe.training
    console.say(
        f"          {plan.steps_per_epoch} steps an epoch; rate {training.learning_rate:g} {training.schedule}, "
        f"{plan.warmup_steps} warm-up steps; evaluation every {plan.eval_every_steps}"
    )
    console.say(f"run       {run}, seed {training.seed[0]}")
