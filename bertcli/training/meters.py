"""Progress and speed of a run: its completed share of steps or time, and sums of step records for each log line."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from bertcli.training.loop import StepRecord


class RunClock:
    """The completed share of a run, by steps or, with a time budget that runs out sooner, by time."""

    def __init__(
        self, accelerator: Accelerator, total_steps: int, budget_seconds: float | None, elapsed_seconds: float
    ):
        self._accelerator, self._total_steps, self._budget_seconds = accelerator, total_steps, budget_seconds
        self._previous_seconds, self._started_at = elapsed_seconds, time.monotonic()
        self._last_share = (-1, 0.0)  # (step, share): every call for a step must return the same share

    @property
    def elapsed_seconds(self) -> float:
        """Training time of the run, including the time before it was resumed."""
        return self._previous_seconds + time.monotonic() - self._started_at

    def share(self, step: int) -> float:
        """Return the completed share of the run before step `step` (from 0); the same on every process."""
        if self._budget_seconds is None:
            return step / self._total_steps
        if self._last_share[0] != step:
            share = max(step / self._total_steps, self.elapsed_seconds / self._budget_seconds)
            self._last_share = (step, broadcast_from_main(self._accelerator, share))
        return self._last_share[1]


def broadcast_from_main(accelerator: Accelerator, value: float) -> float:
    """Return the value of the main process on every process."""
    tensor = torch.tensor(value)
    if accelerator.num_processes > 1:
        tensor = broadcast(tensor.to(accelerator.device))
    return float(tensor)


class StepMeter:
    """The sums of the step records since the last log line, and the time that these steps took.

    Args:
        state: `state()` of an earlier meter, from a checkpoint, to continue from.
    """

    def __init__(self, device: torch.device, state: dict[str, float] | None = None):
        state = state or {}
        self._loss = torch.tensor(state.get("loss", 0.0), device=device)
        self._skipped = torch.tensor(state.get("skipped", 0.0), device=device)
        self._last: StepRecord | None = None
        self._started_at = time.perf_counter() - state.get("seconds", 0.0)
        self.num_steps, self.num_overflowed = int(state.get("num_steps", 0)), int(state.get("num_overflowed", 0))
        self.num_examples, self.num_tokens, self.num_padded_tokens = (
            int(state.get(name, 0)) for name in ("num_examples", "num_tokens", "num_padded_tokens")
        )

    def state(self) -> dict[str, float]:
        """Return the sums as plain numbers, for a checkpoint. Synchronizes with the device."""
        return {
            "loss": self._loss.item(),
            "skipped": self._skipped.item(),
            "seconds": time.perf_counter() - self._started_at,
            "num_steps": self.num_steps,
            "num_overflowed": self.num_overflowed,
            "num_examples": self.num_examples,
            "num_tokens": self.num_tokens,
            "num_padded_tokens": self.num_padded_tokens,
        }

    def add(self, record: StepRecord) -> None:
        """Add the record of one step."""
        self._loss += torch.where(record.skipped > 0, 0.0, record.loss)
        self._skipped += record.skipped
        self._last = record
        self.num_steps += 1
        self.num_overflowed += record.overflowed
        self.num_examples += record.num_examples
        self.num_tokens += record.num_tokens
        self.num_padded_tokens += record.num_padded_tokens

    def sum_over(self, accelerator: Accelerator) -> None:
        """Sum loss and tokens over all processes; `num_examples` already counts the global batch on each of them."""
        if accelerator.num_processes == 1:
            return
        counts = torch.tensor([self.num_tokens, self.num_padded_tokens], dtype=torch.float64, device=self._loss.device)
        local = torch.cat([self._loss.double()[None], counts])
        loss, tokens, padded = accelerator.reduce(local, reduction="sum")
        self._loss, self.num_tokens, self.num_padded_tokens = loss, int(tokens), int(padded)

    def summary(self, steps_per_epoch: int) -> dict[str, Any]:
        """Return a line of `train.jsonl`, with the mean loss of the steps not skipped. Synchronizes with the device."""
        assert self._last is not None, "a meter without steps has no summary"
        num_skipped = int(self._skipped.item())
        num_counted = self.num_steps - num_skipped
        norm = self._last.grad_norm.item()
        seconds = time.perf_counter() - self._started_at
        return {
            "step": self._last.step,
            "epoch": round(self._last.step / steps_per_epoch, 4),
            "train/loss": self._loss.item() / num_counted if num_counted else None,
            "train/grad_norm": norm if math.isfinite(norm) else None,
            "skipped_steps": num_skipped,
            "overflowed_steps": self.num_overflowed,
            "learning_rate": self._last.learning_rate,
            "examples_per_second": round(self.num_examples / seconds, 2),
            "tokens_per_second": round(self.num_tokens / seconds, 1),
            "seconds": seconds,
        }
