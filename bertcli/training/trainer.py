"""One run with one seed: steps, history, evaluation, best model, checkpoints, results; resumed where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from bertcli.console import Console
from bertcli.errors import Interrupted, TrainingError
from bertcli.files import write_json
from bertcli.models.compile import compile_layers, has_compiler, undo_compiling
from bertcli.runs.checkpoint import list_checkpoints
from bertcli.runs.environment import describe_environment
from bertcli.runs.folder import RunFolder, alone_in
from bertcli.runs.history import append_record, forget_after
from bertcli.training.compile_trial import tried_compiled
from bertcli.training.devices import build_accelerator, choose_precision, cpu_computes_bf16
from bertcli.training.finalize import finish
from bertcli.training.job import Job, OnBatch
from bertcli.training.loop import StepRecord, train_steps
from bertcli.training.meters import Clock, Window
from bertcli.training.resources import bytes_of_run, telling_of_full_disk, telling_of_full_memory
from bertcli.training.schedule import rate_factor
from bertcli.training.signals import StopRequest, stop_on_signals
from bertcli.training.startup import tell_finished
from bertcli.training.trackers import following
from bertcli.training.train_state import Learner

STEPS_BETWEEN_QUESTIONS = 10  # an answer has to be waited for, so GPUs are not asked at each step
TICKS = 10_000  # what the schedule of a run by the clock counts instead of steps


def train(job: Job, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Train, or go on, or just read the results of a run that is finished.

    Raises:
        Interrupted: a signal came; the run is saved and the same command goes on with it.
        TrainingError: a gradient is no number, or memory does not hold a step; the last good checkpoint is kept.
        DiskError: it is full, or all checkpoints are damaged.
        RunFolderError: another process works in the folder.
        UsageError: its results cannot be read.
    """
    results = folder.read_results()
    if results is not None:
        tell_finished(PartialState(), folder.path, console)
        return results
    with alone_in(folder.path) if PartialState().is_main_process else nullcontext():
        return _train(job, folder, console)


def _train(job: Job, folder: RunFolder, console: Console) -> dict[str, Any]:
    run = _Run(job, folder, console)
    telling = telling_of_full_disk(folder.path, bytes_of_run(job.recipe, run.learner.num_parameters))
    with telling, telling_of_full_memory(), following(run.accelerator, run.progress.step):
        run.go_on()
        with console.waiting("answers and report of the best model"):
            results = finish(job, folder, run.accelerator, run.progress, run.facts)
    if run.stopped_by is not None:
        raise Interrupted(run.stopped_by, f"{folder.path} is finished; what follows it waits for the same command")
    return results


class _Run:
    """The state of one run in memory: model, optimiser, progress and where they are kept."""

    def __init__(self, job: Job, folder: RunFolder, console: Console):
        self.recipe = recipe = job.recipe
        self.job, self.plan, self.folder, self.console = job, job.plan, folder, console
        self.accelerator = build_accelerator(
            recipe.hardware, has_idle_weights=job.has_idle_weights, logging_folder=folder.trackers
        )
        self.is_first = self.accelerator.is_main_process  # the one that writes
        self.precision = choose_precision(recipe.hardware)
        if self.precision == "bf16" and self.accelerator.device.type == "cpu" and not cpu_computes_bf16():
            console.warn("this CPU has no bf16 instructions; hardware.precision=fp32 is far faster here")
        self.learner = Learner(job, folder, self.accelerator, self.precision, console)
        self.best_by = job.best_by
        self.stopped_by: int | None = None  # the signal that came in the last step
        self.progress = self.learner.progress
        budget, elapsed = job.plan.budget_seconds, self.progress.elapsed_seconds
        self.clock = Clock(self.accelerator, job.plan.total_steps, budget, elapsed)
        if self.is_first:  # what the histories say of later steps is forgotten
            forget_after(folder.train_history, self.progress.step)
            forget_after(folder.eval_history, self.progress.step)
            folder.tidy()
            write_json(folder.environment, describe_environment())

    def go_on(self) -> None:
        """Steps from here to the end, with everything that happens between them."""
        progress, plan = self.progress, self.plan
        if self._should_stop_early():
            return
        self.job.begin(self.accelerator, self.learner.module, self.console)
        self.job.set_learning(progress.step)
        self.job.place = progress.place
        steps = self._steps()
        window = Window(self.accelerator.device, progress.window if self.is_first else None)
        with stop_on_signals() as stop, self.console.display("step", plan.total_steps) as display:
            display.start_at(progress.step - window.num_steps)
            for record in steps:
                window.add(record)
                progress.step = record.step
                self.job.set_learning(record.step)
                if record.micro_batch_size != progress.micro_batch_size:
                    progress.micro_batch_size = record.micro_batch_size
                    words = f"memory holds {record.micro_batch_size} examples at once; the global batch stays as it is"
                    self.console.say(f"step {record.step}: {words}")
                is_last = self.clock.share(record.step) >= 1
                stopped_by = self._agreed(stop, record.step)
                evaluates = is_last or record.step % plan.eval_every_steps == 0
                if evaluates or record.step % self.recipe.hardware.log_every_steps == 0:
                    display.advance(window.num_steps, self._log(window))
                    window = Window(self.accelerator.device)
                if not evaluates and stopped_by is None:
                    continue
                if evaluates:
                    self._evaluate(display.count("evaluating"))
                self._save_checkpoint(window)
                stopped_by = stopped_by or self._agreed(stop, 0)  # it may have come meanwhile; here all have just met
                self.stopped_by = stopped_by
                if stopped_by is not None and not is_last:
                    raise Interrupted(
                        stopped_by, f"stopped after step {record.step}, all saved; the same command goes on"
                    )
                if is_last:
                    break
                if self._should_stop_early():
                    self.console.say(f"no better {self.best_by} in {progress.evaluations_without_better} evaluations")
                    break
                window = Window(self.accelerator.device)

    def _steps(self) -> Iterator[StepRecord]:
        """The optimiser steps from here to the end, each of them made when it is asked for."""
        progress, hardware, module = self.progress, self.recipe.hardware, self.learner.module
        steps = train_steps(
            self.accelerator,
            self.learner.model,
            self.learner.optimizer,
            self._rate_at,
            self.job.batches(self.accelerator, progress.step, self.clock),
            self.job.loss,
            max_grad_norm=self.recipe.training.max_grad_norm,
            start_step=progress.step,
            micro_batch_size=progress.micro_batch_size,
            may_divide=hardware.micro_batch_size == "auto" and self.accelerator.num_processes == 1,
        )
        words = f"device    {self.accelerator.device} in {self.precision}"
        why_not = self._why_not_compiled() if hardware.compile == "auto" else ""
        self.console.say(f"{words}; layers are not compiled, {why_not}" if why_not else words)
        if hardware.compile != "auto" or why_not:
            return steps
        compiled, undone = partial(compile_layers, module, may_fail=True), partial(undo_compiling, module)
        return tried_compiled(steps, self.accelerator, self._seconds_left, compiled, undone, self.console.say)

    def _why_not_compiled(self) -> str:
        """Why compiled layers are not even tried; nothing if they are."""
        if self.accelerator.device.type != "cuda":
            return "which was no faster on a CPU"  # tests/benchmarks/RESULTS.md
        return "" if has_compiler() else "which needs a C++ compiler"

    def _seconds_left(self) -> float:
        """If what is left takes as long as what is done did."""
        share = self.clock.share(self.progress.step)
        return self.clock.elapsed_seconds * (1 - share) / share

    @property
    def facts(self) -> dict[str, Any]:
        """What the results say of how it was computed."""
        return {
            "num_parameters": self.learner.num_parameters,
            "num_learning_parameters": self.learner.num_learning,
            "device": str(self.accelerator.device),
            "precision": self.precision,
        }

    def _agreed(self, request: StopRequest, step: int) -> int | None:
        """The signal that asked to stop; several processes ask each other, so that all stop alike."""
        number = request.signal_number
        if self.accelerator.num_processes == 1:
            return number
        if self.accelerator.device.type != "cpu" and step % STEPS_BETWEEN_QUESTIONS:
            return None
        asked = torch.tensor([number or 0], device=self.accelerator.device)
        return int(self.accelerator.gather(asked).max()) or None

    def _rate_at(self, step: int) -> float:
        training, plan = self.recipe.training, self.plan
        now, warmup, total = float(step), float(plan.warmup_steps), float(plan.total_steps)
        rate = training.learning_rate
        if plan.budget_seconds is not None:
            total = float(TICKS)
            now, warmup = self.clock.share(step) * total, training.warmup_ratio * total
            if training.warmup_steps is not None:  # they are counted, whatever time the rest has
                warmup, rate = 0.0, rate * min(1.0, step / max(1, training.warmup_steps))
        return rate * rate_factor(training.schedule, now, warmup, total)

    def _log(self, window: Window) -> str:
        """Write a line of train.jsonl, count the work, refuse a loss that is not a number; words for the display."""
        window.sum_over(self.accelerator)
        record = window.summary(self.plan.steps_per_epoch)
        progress = self.progress
        progress.train_seconds += record.pop("seconds")
        progress.num_examples += window.num_examples
        progress.num_tokens += window.num_tokens
        progress.num_padded_tokens += window.num_padded_tokens
        progress.num_skipped_steps += record["skipped_steps"]
        progress.num_overflowed_steps += record["overflowed_steps"]
        self._tell(self.folder.train_history, record)
        if record["skipped_steps"]:
            self._tell_of_skipped(record["skipped_steps"])
        loss = "–" if record["train/loss"] is None else f"{record['train/loss']:.4f}"
        return f"loss {loss}  {record['examples_per_second']:.0f} ex/s  {record['tokens_per_second']:.0f} tok/s"

    def _tell(self, history: Path, record: dict[str, Any]) -> None:
        """Add a line to a history and tell the trackers of it."""
        if self.is_first:
            append_record(history, record)
            numbers = {name: value for name, value in record.items() if name != "step" and value is not None}
            self.accelerator.log(numbers, step=record["step"])

    def _tell_of_skipped(self, number: int) -> None:
        """Warn of steps whose gradient was no number, or stop, as the recipe says."""
        words = f"the gradient was no number in {number} of the last steps, by step {self.progress.step}"
        if self.recipe.training.non_finite == "skip":
            self.console.warn(f"{words}; they were skipped")
            return
        kept = list_checkpoints(self.folder.checkpoints)
        raise TrainingError(
            f"{words}. "
            + (f"The last good checkpoint is {kept[-1]}. " if kept else "There is no checkpoint yet. ")
            + "Try a lower training.learning_rate, a longer warm-up or hardware.precision=fp32, "
            "or leave such steps out by training.non_finite=skip."
        )

    def _evaluate(self, on_batch: OnBatch) -> None:
        """Score the validation split; keep the model if it is the best so far."""
        progress = self.progress
        on_batch(0)
        scores = self.job.score(self.accelerator, self.learner.module, on_batch=on_batch)
        record = {"step": progress.step} | {f"eval/validation/{name}": value for name, value in scores.items()}
        self._tell(self.folder.eval_history, record)
        words = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.console.say(f"step {progress.step}/{self.plan.total_steps}  validation: {words}")
        value = self.job.goodness(scores)
        if progress.best_value is None or value > progress.best_value:
            progress.best_value, progress.best_step = value, progress.step
            progress.evaluations_without_better = 0
            self.learner.save_model()
        else:
            progress.evaluations_without_better += 1

    def _save_checkpoint(self, window: Window) -> None:
        window.sum_over(self.accelerator)
        self.progress.window = window.state() if window.num_steps else None
        self.progress.elapsed_seconds = self.clock.elapsed_seconds
        self.progress.place = self.job.place
        self.learner.save_checkpoint()

    def _should_stop_early(self) -> bool:
        patience = self.recipe.evaluation.early_stopping_patience
        return patience is not None and self.progress.evaluations_without_better >= patience
