"""Thresholds chosen on validation rows once a model has learned, and kept with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator

from bertcli.commands.answering import answer
from bertcli.commands.prepare import Prepared
from bertcli.commands.score import positive_number
from bertcli.heads.text_classification import TextClassification, average_windows
from bertcli.metrics.bundled import compute_metrics
from bertcli.runs.files import write_json


def with_tuned_thresholds(
    accelerator: Accelerator, model: torch.nn.Module, prepared: Prepared, folder: Path
) -> tuple[Prepared, dict[str, float]]:
    """The same with the thresholds that score the best F1 on the validation rows, and the metrics there.

    The configuration of the model in `folder` says them, for `eval` and `predict`.
    """
    head, task = cast("TextClassification", prepared.head), prepared.task
    rows, encoded, right = prepared.rows["validation"], prepared.encode("validation"), prepared.references["validation"]
    max_tokens = prepared.recipe.hardware.eval_batch_tokens
    parts = answer(accelerator, model, rows, encoded, head, max_tokens=max_tokens)
    logits = np.concatenate([average_windows(part, some) for _, part, some, _ in parts])
    tuned = head.tuned(task, logits, right)
    if accelerator.is_main_process:
        file = folder / "config.json"
        write_json(file, json.loads(file.read_text("utf-8")) | tuned.facts)
    scores = compute_metrics(
        task.metric_names, tuned.answer_kind, tuned.choose(logits), right, positive_number(task, tuned)
    )
    return replace(prepared, head=tuned), scores
