"""Train or resume one run with one seed: steps, history, evaluation, best model and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from bertcli.console import Console
from bertcli.errors import Interrupted, TrainingError
from bertcli.files import write_json
from bertcli.models.compile import compile_layers, uncompile_layers
from bertcli.runs.checkpoint import list_checkpoints
from bertcli.runs.claim import exclusive_lock
from bertcli.runs.environment import describe_environment
from bertcli.runs.folder import RunFolder
from bertcli.runs.history import SCORE_PREFIX, append_record, read_records, truncate_after, validation_scores
from bertcli.runs.results import RunResults
from bertcli.training.compile_trial import compile_if_faster, reason_not_to_compile
from bertcli.training.devices import (
    build_accelerator,
    choose_num_threads,
    choose_precision,
    cpu_computes_bf16,
    restore_num_threads,
)
from bertcli.training.finalize import finalize
from bertcli.training.job import Job, OnBatch
from bertcli.training.loop import StepRecord, train_steps
from bertcli.training.meters import RunClock, StepMeter
from bertcli.training.resources import max_run_bytes, report_full_disk, report_out_of_memory
from bertcli.training.schedule import lr_scale
from bertcli.training.signals import StopRequest, stop_on_signals
from bertcli.training.trackers import track_run
from bertcli.training.train_state import TrainState

SIGNAL_SYNC_STEPS = 10  # GPU processes agree on a signal only this often, because agreeing synchronizes the device
BUDGET_TICKS = 10_000  # with a time budget the schedule counts ticks of the budget instead of steps


def train(job: Job, folder: RunFolder, console: Console) -> RunResults:
    """Train the job in its run folder to the end, resuming from its newest checkpoint if any; return the results.

    Raises:
        Interrupted: if a signal arrived; the run is saved, and the same command resumes it.
        TrainingError: if a gradient is non-finite, or memory runs out; the last good checkpoint is kept.
        DiskError: if the disk is full, all checkpoints are corrupt, or the best model is damaged and cannot be
            restored.
        RunFolderError: if another process uses the folder.
    """
    lock = exclusive_lock(folder.path) if PartialState().is_main_process else nullcontext()
    with lock, restore_num_threads():
        trainer = Trainer(job, folder, console)
        max_bytes = max_run_bytes(job.recipe, trainer.state.num_parameters)
        tracking = track_run(trainer.accelerator, trainer.progress.step)
        with report_full_disk(folder.path, max_bytes), report_out_of_memory(), tracking:
            trainer.prepare_folder()
            trainer.fit()
            with console.waiting("evaluating the best model and writing the report"):
                trainer.state.ensure_best_model()
                logits = trainer.state.validation_logits()
                results = finalize(
                    job, folder, trainer.accelerator, trainer.progress, trainer.setup, logits, trainer.best_decoded
                )
    if trainer.stopped_by is not None:
        raise Interrupted(trainer.stopped_by, f"{folder.path} is finished; re-run the same command for the rest")
    return results


class Trainer:
    """One run in memory: its job, train state, progress and run folder."""

    def __init__(self, job: Job, folder: RunFolder, console: Console):
        self.recipe = recipe = job.recipe
        self.job, self.plan, self.folder, self.console = job, job.plan, folder, console
        self.accelerator = build_accelerator(
            recipe.hardware, has_unused_parameters=job.has_unused_parameters, logging_folder=folder.trackers
        )
        self.is_main_process = self.accelerator.is_main_process  # the only one that writes
        self.precision = choose_precision(recipe.hardware)
        if self.precision == "bf16" and self.accelerator.device.type == "cpu" and not cpu_computes_bf16():
            console.warn("this CPU has no bf16 instructions; hardware.precision=fp32 is far faster here")
        self.state = TrainState(job, folder, self.accelerator, self.precision, console)
        self.progress = self.state.progress
        if self.accelerator.device.type == "cpu":
            module, tokens, saved = self.state.module, job.tokens_per_micro_batch, self.progress.num_threads
            num_threads = choose_num_threads(recipe.hardware, module, tokens, saved)
            torch.set_num_threads(num_threads)
            self.progress.num_threads = saved or num_threads  # it may be resumed again where there are more cores
        self.best_decoded: Any = None  # of the evaluation that selected the best model; not saved in checkpoints
        self.stopped_by: int | None = None  # the signal that arrived during the last step
        budget, elapsed = job.plan.budget_seconds, self.progress.elapsed_seconds
        self.clock = RunClock(self.accelerator, job.plan.total_steps, budget, elapsed)

    def prepare_folder(self) -> None:
        """Remove what is left of steps after the checkpoint, which will be repeated; record the environment."""
        if self.is_main_process:
            truncate_after(self.folder.train_history, self.progress.step)
            truncate_after(self.folder.eval_history, self.progress.step)
            self.folder.clean_up()
            write_json(self.folder.environment, describe_environment())

    def fit(self) -> None:
        """Run the remaining optimizer steps; log, evaluate, save and stop between them."""
        progress, plan = self.progress, self.plan
        if progress.best_step is not None and self._reason_to_stop() is not None:
            return
        self.job.on_train_start(self.accelerator, self.state.module, self.console)
        self.job.set_trainable(progress.step)
        self.job.stream_position = progress.stream_position
        steps = self._steps()
        meter = StepMeter(self.accelerator.device, progress.step_meter if self.is_main_process else None)
        with stop_on_signals() as stop, self.console.display("step", plan.total_steps) as display:
            display.start_at(progress.step - meter.num_steps)
            for record in steps:
                meter.add(record)
                progress.step = record.step
                self.job.set_trainable(record.step)
                self._note_micro_batch_size(record)
                is_last = self.clock.share(record.step) >= 1
                stopped_by = self._agree_on_signal(stop, record.step)
                evaluates = is_last or record.step % plan.eval_every_steps == 0
                if evaluates or record.step % self.recipe.hardware.log_every_steps == 0:
                    display.advance(meter.num_steps, self._log(meter))
                    meter = StepMeter(self.accelerator.device)
                if not evaluates and stopped_by is None:
                    continue
                if evaluates:
                    self._evaluate(display.nested_counter("evaluating"))
                self._save_checkpoint(meter)
                stopped_by = stopped_by or self._agree_on_signal(stop, 0)  # it may have arrived while saving
                self.stopped_by = stopped_by
                if stopped_by is not None and not is_last:
                    raise Interrupted(
                        stopped_by, f"stopped and saved after step {record.step}; re-run the same command to resume"
                    )
                if is_last:
                    break
                if (reason := self._reason_to_stop()) is not None:
                    self.console.say(f"stopping early: {reason}")
                    break
                meter = StepMeter(self.accelerator.device)

    def _steps(self) -> Iterator[StepRecord]:
        """Return the remaining optimizer steps, which run as they are iterated over."""
        progress, hardware, module = self.progress, self.recipe.hardware, self.state.module
        steps = train_steps(
            self.accelerator,
            self.state.model,
            self.state.optimizer,
            self._learning_rate,
            self.job.batches(self.accelerator, progress.step, self.clock),
            self.job.loss,
            max_grad_norm=self.recipe.training.max_grad_norm,
            start_step=progress.step,
            micro_batch_size=progress.micro_batch_size,
            halve_on_oom=hardware.micro_batch_size == "auto" and self.accelerator.num_processes == 1,
        )
        threads = f", threads: {torch.get_num_threads()}" if self.accelerator.device.type == "cpu" else ""
        device = f"device    {self.accelerator.device} in {self.precision}{threads}"
        reason = reason_not_to_compile(self.accelerator.device) if hardware.compile == "auto" else ""
        self.console.say(f"{device}; layers are not compiled: {reason}" if reason else device)
        if hardware.compile != "auto" or reason:
            return steps
        compiled, undone = partial(compile_layers, module, suppress_errors=True), partial(uncompile_layers, module)
        return compile_if_faster(steps, self.accelerator, self._remaining_seconds, compiled, undone, self.console.say)

    def _remaining_seconds(self) -> float:
        """Estimate the remaining time from the average speed so far."""
        share = self.clock.share(self.progress.step)
        return self.clock.elapsed_seconds * (1 - share) / share

    @property
    def setup(self) -> dict[str, Any]:
        """The keys of `results.json` that say how the run was executed."""
        return {
            "num_parameters": self.state.num_parameters,
            "num_trainable_parameters": self.state.num_trainable_parameters,
            "device": str(self.accelerator.device),
            "precision": self.precision,
        }

    def _agree_on_signal(self, request: StopRequest, step: int) -> int | None:
        """Return the stop signal that arrived, if any; processes agree on it, so that all stop at the same step."""
        number = request.signal_number
        if self.accelerator.num_processes == 1:
            return number
        if self.accelerator.device.type != "cpu" and step % SIGNAL_SYNC_STEPS:
            return None
        signals = torch.tensor([number or 0], device=self.accelerator.device)
        return int(self.accelerator.gather(signals).max()) or None

    def _learning_rate(self, step: int) -> float:
        """Return the learning rate of optimizer step `step` (from 0)."""
        training, plan = self.recipe.training, self.plan
        current, warmup, total = float(step), float(plan.warmup_steps), float(plan.total_steps)
        peak = training.learning_rate
        if plan.budget_seconds is not None:
            total = float(BUDGET_TICKS)
            current, warmup = self.clock.share(step) * total, training.warmup_ratio * total
            if training.warmup_steps is not None:  # warmup counts steps even if the rest of the schedule counts time
                warmup, peak = 0.0, peak * min(1.0, step / max(1, training.warmup_steps))
        scale = partial(lr_scale, decay_ratio=training.decay_ratio, decay_shape=training.decay_shape)
        return peak * scale(training.schedule, current, warmup, total)

    def _note_micro_batch_size(self, record: StepRecord) -> None:
        """Remember and report that micro-batches were halved to fit into memory."""
        if record.micro_batch_size != self.progress.micro_batch_size:
            self.progress.micro_batch_size = record.micro_batch_size
            size = f"micro-batches of {record.micro_batch_size} examples fit into memory"
            self.console.say(f"step {record.step}: {size}; the global batch stays the same")

    def _log(self, meter: StepMeter) -> str:
        """Write a line of train.jsonl, update the counts, report skipped steps; return the progress note."""
        meter.sum_over(self.accelerator)
        record = meter.summary(self.plan.steps_per_epoch)
        progress = self.progress
        progress.train_seconds += record.pop("seconds")
        progress.num_examples += meter.num_examples
        progress.num_tokens += meter.num_tokens
        progress.num_padded_tokens += meter.num_padded_tokens
        progress.num_skipped_steps += record["skipped_steps"]
        progress.num_overflowed_steps += record["overflowed_steps"]
        self._write_record(self.folder.train_history, record)
        if record["skipped_steps"]:
            self._report_skipped(record["skipped_steps"])
        loss = "–" if record["train/loss"] is None else f"{record['train/loss']:.4f}"
        return f"loss {loss}  {record['examples_per_second']:.0f} ex/s  {record['tokens_per_second']:.0f} tok/s"

    def _write_record(self, history: Path, record: dict[str, Any]) -> None:
        """Append a line to a history and send its numbers to the trackers."""
        if self.is_main_process:
            append_record(history, record)
            numbers = {name: value for name, value in record.items() if name != "step" and value is not None}
            self.accelerator.log(numbers, step=record["step"])

    def _report_skipped(self, num_skipped: int) -> None:
        """Warn about steps with a non-finite gradient, or stop, as `training.non_finite` says."""
        problem = f"non-finite gradient in {num_skipped} of the last steps, up to step {self.progress.step}"
        if self.recipe.training.non_finite == "skip":
            self.console.warn(f"{problem}; they were skipped")
            return
        kept = list_checkpoints(self.folder.checkpoints)
        raise TrainingError(
            f"{problem}. "
            + (f"The last good checkpoint is {kept[-1]}. " if kept else "There is no checkpoint yet. ")
            + "Try a lower training.learning_rate, a longer warmup or hardware.precision=fp32, "
            "or skip such steps with training.non_finite=skip."
        )

    def _evaluate(self, on_batch: OnBatch) -> None:
        """Evaluate on the validation split; save the model if it is the best so far."""
        progress = self.progress
        on_batch(0)
        evaluation = self.job.evaluate(self.accelerator, self.state.module, on_batch=on_batch)
        scores = evaluation.scores
        record = {"step": progress.step} | {f"{SCORE_PREFIX}{name}": value for name, value in scores.items()}
        self._write_record(self.folder.eval_history, record)
        listed = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.console.say(f"step {progress.step}/{self.plan.total_steps}  validation: {listed}")
        score, loss, best_loss = self.job.selection_score(scores), scores.get("loss"), progress.best_loss
        # Small validation splits have many ties, of which the first is often the least sure one.
        is_surer = loss is not None and best_loss is not None and loss < best_loss
        if progress.best_score is None or score > progress.best_score or (score == progress.best_score and is_surer):
            progress.best_score, progress.best_loss, progress.best_step = score, loss, progress.step
            progress.evals_without_improvement = 0
            self.best_decoded = evaluation.decoded
            self.state.save_model(evaluation.logits)
        else:
            progress.evals_without_improvement += 1

    def _save_checkpoint(self, meter: StepMeter) -> None:
        meter.sum_over(self.accelerator)
        self.progress.step_meter = meter.state() if meter.num_steps else None
        self.progress.elapsed_seconds = self.clock.elapsed_seconds
        self.progress.stream_position = self.job.stream_position
        self.state.save_checkpoint()

    def _reason_to_stop(self) -> str | None:
        """Return why the run ends after its last evaluation so far; None if it continues."""
        patience, evals = self.recipe.evaluation.early_stopping_patience, self.progress.evals_without_improvement
        if patience is not None and evals >= patience:
            return f"{self.job.best_by} did not improve in {evals} evaluations"
        if self.job.reason_to_stop is None:
            return None
        reason = None
        if self.is_main_process and (records := read_records(self.folder.eval_history)):
            share, score = (
                self.clock.share(records[-1]["step"]),
                self.job.selection_score(validation_scores(records[-1])),
            )
            reason = self.job.reason_to_stop(share, score) if share < 1 else None
        return broadcast_object_list([reason])[0]
