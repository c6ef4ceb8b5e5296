"""How far a run is: its share of steps or time, and step records added up between two lines of the history."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from bertcli.training.loop import StepRecord


class Clock:
    """How much of a run is done: by its steps or, if its time is limited and runs out sooner, by the time."""

    def __init__(self, accelerator: Accelerator, total_steps: int, budget_seconds: float | None, elapsed: float):
        self._accelerator, self._total, self._budget = accelerator, total_steps, budget_seconds
        self._before, self._started_at = elapsed, time.monotonic()
        self._last = (-1, 0.0)  # a step's share is asked for more than once and must not change meanwhile

    @property
    def elapsed_seconds(self) -> float:
        """Time since the run began, all its parts together."""
        return self._before + time.monotonic() - self._started_at

    def share(self, step: int) -> float:
        """The share of the run that is done before step number `step` (from 0); the same on every process."""
        if self._budget is None:
            return step / self._total
        if self._last[0] != step:
            share = max(step / self._total, self.elapsed_seconds / self._budget)
            self._last = (step, of_first(self._accelerator, share))
        return self._last[1]


def of_first(accelerator: Accelerator, value: float) -> float:
    """The first process's number, on each of them."""
    number = torch.tensor(value)
    if accelerator.num_processes > 1:
        number = broadcast(number.to(accelerator.device))
    return float(number)


class Window:
    """The steps since the last look, and how long they took.

    Args:
        state: of a window that was interrupted, to go on with.
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
        """All of it as plain numbers. Waits for the device."""
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
        """Count one step."""
        self._loss += torch.where(record.skipped > 0, 0.0, record.loss)
        self._skipped += record.skipped
        self._last = record
        self.num_steps += 1
        self.num_overflowed += record.overflowed
        self.num_examples += record.num_examples
        self.num_tokens += record.num_tokens
        self.num_padded_tokens += record.num_padded_tokens

    def sum_over(self, accelerator: Accelerator) -> None:
        """Count what all processes did; each saw the whole number of examples, but only its own share of the rest."""
        if accelerator.num_processes == 1:
            return
        counts = torch.tensor([self.num_tokens, self.num_padded_tokens], dtype=torch.float64, device=self._loss.device)
        own = torch.cat([self._loss.double()[None], counts])
        loss, tokens, padded = accelerator.reduce(own, reduction="sum")
        self._loss, self.num_tokens, self.num_padded_tokens = loss, int(tokens), int(padded)

    def summary(self, steps_per_epoch: int) -> dict[str, Any]:
        """One line of `train.jsonl`; its loss is of the steps that were not skipped. Waits for the device."""
        assert self._last is not None, "a window without steps has no summary"
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
