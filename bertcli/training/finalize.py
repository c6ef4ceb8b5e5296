"""Finish a run: evaluate the best model, then write predictions, model card, results and report."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator

from bertcli.files import write_json, write_json_lines, write_text
from bertcli.metrics.answers import save_answers
from bertcli.reports.comparison import write_page
from bertcli.runs.checkpoint import Progress
from bertcli.runs.folder import RunFolder
from bertcli.runs.history import read_records, validation_scores
from bertcli.runs.results import RunResults
from bertcli.training.job import BestModel, Job, Logits


def finalize(
    job: Job,
    folder: RunFolder,
    accelerator: Accelerator,
    progress: Progress,
    setup: dict[str, Any],
    validation_logits: Logits,
    decoded: Any,
) -> RunResults:
    """Write all outputs of a finished run, `results.json` last except for the report; return the results.

    Args:
        setup: how the run was executed, such as its device and precision.
        validation_logits: of the best model, as far as they were kept.
        decoded: as in `Job.evaluate_best`.
    """
    accelerator.wait_for_everyone()  # the main process may still be writing the model
    best = job.evaluate_best(accelerator, folder.model, validation_logits, decoded)
    results = _summarize(job, folder, progress, best, setup)
    if accelerator.is_main_process:
        if best.predictions:
            folder.predictions.mkdir(exist_ok=True)
        for name, answers in best.answers.items():
            save_answers(folder.predictions / name, answers)
        for name, lines in best.predictions.items():
            write_json_lines(folder.predictions / name, lines)
        write_text(folder.card, job.card(results))
        write_json(folder.results, results.to_json())
        folder.validation_logits.unlink(missing_ok=True)
        write_page([str(folder.path)], folder.report)
    accelerator.wait_for_everyone()
    return results


def _summarize(job: Job, folder: RunFolder, progress: Progress, best: BestModel, setup: dict[str, Any]) -> RunResults:
    """Collect what was trained, its scores, and the amount of computation."""
    evaluations = read_records(folder.eval_history)
    record = next(record for record in evaluations if record["step"] == progress.best_step)
    seconds = progress.train_seconds
    return RunResults(
        **job.describe() | best.extras,
        seed=job.seed,
        metrics={"validation": validation_scores(record), **best.scores},
        **({"intervals": best.intervals} if best.intervals else {}),
        best_by=job.best_by,
        best_step=progress.best_step,
        total_steps=progress.step,
        num_evaluations=len(evaluations),
        num_train_examples=job.plan.num_train_examples,
        train_seconds=seconds,
        examples_per_second=progress.num_examples / seconds,
        tokens_per_second=progress.num_tokens / seconds,
        num_skipped_steps=progress.num_skipped_steps,
        num_overflowed_steps=progress.num_overflowed_steps,
        data_fingerprint=progress.data_fingerprint,
        padding_share=1 - progress.num_tokens / progress.num_padded_tokens,
        **setup,
        run=str(folder.path),
    )
