"""Step records added up between two lines of the history, without waiting for the device at every step."""

from __future__ import annotations

import time
from typing import Any

import torch

from bertcli.training.loop import StepRecord


class Window:
    """The steps since the last look, and how long they took."""

    def __init__(self, device: torch.device):
        self._loss = torch.zeros((), device=device)
        self._last: StepRecord | None = None
        self._started_at = time.perf_counter()
        self.num_steps = self.num_examples = self.num_tokens = self.num_padded_tokens = 0

    def add(self, record: StepRecord) -> None:
        """Count one step."""
        self._loss += record.loss
        self._last = record
        self.num_steps += 1
        self.num_examples += record.num_examples
        self.num_tokens += record.num_tokens
        self.num_padded_tokens += record.num_padded_tokens

    def summary(self, steps_per_epoch: int) -> dict[str, Any]:
        """One line of `train.jsonl`. Reads the loss, so it waits for the device."""
        assert self._last is not None, "a window without steps has no summary"
        loss = self._loss.item() / self.num_steps
        seconds = time.perf_counter() - self._started_at
        return {
            "step": self._last.step,
            "epoch": round(self._last.step / steps_per_epoch, 4),
            "train/loss": loss,
            "train/grad_norm": float(self._last.grad_norm),
            "learning_rate": self._last.learning_rate,
            "examples_per_second": round(self.num_examples / seconds, 2),
            "tokens_per_second": round(self.num_tokens / seconds, 1),
            "seconds": seconds,
        }
