"""The training plan: step and batch counts derived from a recipe and the data before training starts. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bertcli.errors import RecipeError
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.recipe.schema import Recipe


@dataclass(frozen=True)
class Plan:
    """The step and batch counts of one run."""

    num_train_examples: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    eval_every_steps: int
    micro_batch_size: int  # examples per forward pass on one device
    accumulation_steps: int
    budget_seconds: float | None = None  # time limit of the run
    gradient_checkpointing: bool = False  # whether activations are recomputed


def make_plan(
    recipe: Recipe, num_train_examples: int, num_processes: int = 1, examples_per_epoch: int | None = None
) -> Plan:
    """Derive the plan of a run over `num_train_examples` rows.

    Args:
        examples_per_epoch: number of rows in an epoch, more than there are if some are over-sampled; None: each once.

    Raises:
        RecipeError: if there are more warmup steps than training steps.
    """
    training = recipe.training
    steps_per_epoch = math.ceil((examples_per_epoch or num_train_examples) / training.global_batch_size)
    return complete_plan(
        recipe,
        num_train_examples=num_train_examples,
        steps_per_epoch=steps_per_epoch,
        total_steps=training.max_steps or max(1, round(training.epochs * steps_per_epoch)),
        global_batch_size=training.global_batch_size,
        num_processes=num_processes,
    )


def complete_plan(
    recipe: Recipe | PretrainRecipe,
    *,
    num_train_examples: int,
    steps_per_epoch: int,
    total_steps: int,
    global_batch_size: int,
    num_processes: int,
    budget_seconds: float | None = None,
) -> Plan:
    """Derive warmup, evaluation interval, micro-batch size and gradient accumulation from the number of steps.

    Args:
        global_batch_size: number of examples in the largest step, over all processes.

    Raises:
        RecipeError: if there are more warmup steps than training steps.
    """
    training, evaluation, requested_size = recipe.training, recipe.evaluation, recipe.hardware.micro_batch_size
    warmup = training.warmup_steps if training.warmup_steps is not None else round(training.warmup_ratio * total_steps)
    if warmup > total_steps:
        raise RecipeError(
            [f"training.warmup_steps is {warmup}, expected at most {total_steps}, the number of training steps"]
        )
    if evaluation.every_steps is not None:
        eval_every = evaluation.every_steps
    elif evaluation.every_epochs is not None:
        eval_every = math.ceil(evaluation.every_epochs * steps_per_epoch)
    else:
        eval_every = total_steps
    per_process = math.ceil(global_batch_size / num_processes)
    micro_batch_size = per_process if requested_size == "auto" else min(requested_size, per_process)
    return Plan(
        num_train_examples=num_train_examples,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        warmup_steps=warmup,
        eval_every_steps=min(eval_every, total_steps),
        micro_batch_size=micro_batch_size,
        accumulation_steps=math.ceil(per_process / micro_batch_size),
        budget_seconds=budget_seconds,
    )


def evaluation_note(plan: Plan, tokens_per_step: float, tokens_per_evaluation: int, cure: str) -> str | None:
    """Return a note if all evaluations take more than a third of the training time; None otherwise.

    Evaluating a token is counted as a third of training on it, since it needs no backward pass.

    Args:
        tokens_per_step: average number of tokens of an optimizer step.
        cure: what makes an evaluation smaller.
    """
    num_evaluations = math.ceil(plan.total_steps / plan.eval_every_steps)
    share = num_evaluations * tokens_per_evaluation / 3 / (plan.total_steps * tokens_per_step)
    if share <= 1 / 3:
        return None
    evaluations, less_often = "evaluation", ""
    if num_evaluations > 1:
        evaluations, less_often = "evaluations", "less often (evaluation.every_steps) or "
    return (
        f"note      {num_evaluations} {evaluations} will take about {share:.0%} of the time of the training steps; "
        f"evaluate {less_often}{cure}"
    )
