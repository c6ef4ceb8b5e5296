"""What a run whose steps are done leaves behind: predictions, model card, results, report."""

from __future__ import annotations

import json
from typing import Any

from accelerate import Accelerator

from bertcli.console import harmless
from bertcli.files import write_json, write_parts, write_text
from bertcli.reports.comparison import write_page
from bertcli.runs.checkpoint import Progress
from bertcli.runs.folder import RunFolder
from bertcli.runs.history import read_records
from bertcli.training.job import Job, Scores


def finish(
    job: Job, folder: RunFolder, accelerator: Accelerator, progress: Progress, facts: dict[str, Any]
) -> dict[str, Any]:
    """Let the best model answer once more, write what is told of it, and return what `results.json` holds.

    Args:
        facts: what else the results say.
    """
    accelerator.wait_for_everyone()  # the first may still be writing the model
    further, answers = job.look_back(accelerator, folder.model)
    results = _describe(job, folder, progress, further) | facts | {"run": str(folder.path)}
    if accelerator.is_main_process:
        for name, lines in answers.items():
            folder.predictions.mkdir(exist_ok=True)
            texts = (f"{harmless(json.dumps(line, ensure_ascii=False))}\n" for line in lines)
            write_parts(folder.predictions / name, texts)
        write_text(folder.card, job.card(results))
        write_json(folder.results, results)
        write_page([str(folder.path)], folder.report)
    accelerator.wait_for_everyone()
    return results


def _describe(job: Job, folder: RunFolder, progress: Progress, further: Scores) -> dict[str, Any]:
    """What was trained, how good it became and how much work that was."""
    evaluations = read_records(folder.eval_history)
    best = next(record for record in evaluations if record["step"] == progress.best_step)
    prefix = "eval/validation/"
    seconds = progress.train_seconds
    return {
        **job.describe(),
        "seed": job.seed,
        "metrics": {
            "validation": {key.removeprefix(prefix): best[key] for key in best if key.startswith(prefix)},
            **further,
        },
        "best_by": job.best_by,
        "best_step": progress.best_step,
        "total_steps": progress.step,
        "num_evaluations": len(evaluations),
        "num_train_examples": job.plan.num_train_examples,
        "train_seconds": seconds,
        "examples_per_second": progress.num_examples / seconds,
        "tokens_per_second": progress.num_tokens / seconds,
        "num_skipped_steps": progress.num_skipped_steps,
        "num_overflowed_steps": progress.num_overflowed_steps,
        "padding_share": 1 - progress.num_tokens / progress.num_padded_tokens,
    }
