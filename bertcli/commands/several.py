"""Several runs one after the other; the failure of one is told and leaves the others alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from accelerate import PartialState

from bertcli.errors import BertcliError, Interrupted, TrainingError
from bertcli.runs.console import Console

Results = dict[str, Any]


def run_each(
    wanted: Mapping[str, Callable[[], Results]], processes: PartialState, console: Console
) -> tuple[dict[str, Results], dict[str, str]]:
    """Run all by name: the results of those that finished, and what the others died of.

    Several processes end with the first that fails: one that went on alone would wait for the others forever.

    Raises:
        Interrupted: a signal came.
        Exception: whatever one of them died of, with several processes.
    """
    finished: dict[str, Results] = {}
    failed: dict[str, str] = {}
    for number, (name, run) in enumerate(wanted.items(), start=1):
        console.say(f"\n{name} ({number} of {len(wanted)})")
        try:
            finished[name] = run()
        except (Interrupted, KeyboardInterrupt):
            raise
        except Exception as error:  # whatever one dies of, the others can go on
            kind = "" if isinstance(error, BertcliError) else f"unexpected {type(error).__name__}: "
            failed[name] = f"{kind}{error}"
            console.warn(f"{name} failed: {failed[name]}")
            if processes.num_processes > 1:
                raise
    return finished, failed


def tell_of_failed(failed: dict[str, str], number: int, what: str) -> None:
    """Raise `TrainingError` if some failed."""
    if failed:
        raise TrainingError(
            f"{len(failed)} of {number} {what} failed: {'; '.join(failed)}. "
            "The same command tries them again; the others are finished."
        )
