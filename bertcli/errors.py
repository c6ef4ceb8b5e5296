"""Exceptions by kind of failure; each class defines the program's exit code.

A message says what was found, what was expected and how to fix it. The command line prints only the message; `--debug`
adds the traceback.

Exit codes: 0 success · 1 failure · 2 invalid usage or recipe · 130 interrupted by Ctrl-C · 143 by SIGTERM · 85 by
SIGUSR1, which batch systems send shortly before a job's time limit (requeue the job).
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable

REQUEUE_EXIT_CODE = 85
MAX_QUOTED_CHARS = 80  # of a person's data in a message
MAX_REASON_CHARS = 200  # of a library's error message
MAX_PROBLEMS = 50  # listed in the error message for a recipe


class BertcliError(Exception):
    """Base class of errors that a user can fix; the message says how."""

    exit_code = 1


class UsageError(BertcliError):
    """Invalid command-line arguments."""

    exit_code = 2


class RecipeError(BertcliError):
    """An invalid recipe; `problems` lists every problem with its location, and the message shows the first ones."""

    exit_code = 2

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        rest = len(self.problems) - MAX_PROBLEMS
        super().__init__("\n".join([*self.problems[:MAX_PROBLEMS], *([f"… and {rest} more"] if rest > 0 else [])]))


class DataError(BertcliError):
    """Data that is missing or unreadable, or that does not match the task."""


class ModelError(BertcliError):
    """A model that is missing or unreadable, or that does not match the task."""


class HubError(BertcliError):
    """An unreachable Hub, or a request that it rejected."""


class RunFolderError(BertcliError):
    """A run folder that cannot be written or must not be overwritten."""

    exit_code = 2


class DiskError(BertcliError):
    """A full disk, or saved files that have been corrupted."""


class ClusterError(BertcliError):
    """A job that was rejected by the cluster."""


class TrainingError(BertcliError):
    """A condition that prevents training from continuing, such as a non-finite loss."""


class Interrupted(BertcliError):  # noqa: N818 - an interruption, not an error
    """A signal that stopped the program; progress up to that point has been saved."""

    def __init__(self, signal_number: int, message: str):
        self.exit_code = signal_exit_code(signal_number)
        super().__init__(message)


class ProcessError(BertcliError):
    """A failure of a process started by this one, with the message and exit code of that process."""

    def __init__(self, message: str, exit_code: int):
        self.exit_code = exit_code
        super().__init__(message)


def describe_exit(code: int) -> str:
    """Describe how a process ended, given its return code: `exit code 3`, or the signal if the code is negative."""
    if code >= 0:
        return f"exit code {code}"
    if code == -signal.SIGKILL:
        return "killed, perhaps for lack of memory"
    return f"ended by {signal.Signals(-code).name}"


def signal_exit_code(signal_number: int) -> int:
    """Return the exit code for a program stopped by a signal."""
    return REQUEUE_EXIT_CODE if signal_number == signal.SIGUSR1 else 128 + signal_number


def quoted(value: object) -> str:
    """Return the `repr` of a value, truncated for a message."""
    return shortened(repr(value))


def shortened(text: str) -> str:
    """Return the text, truncated for a message."""
    return text if len(text) <= MAX_QUOTED_CHARS else f"{text[: MAX_QUOTED_CHARS - 1]}…"


def describe_error(error: Exception) -> str:
    """Return the type of a library's error and its message in one line, truncated."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:MAX_REASON_CHARS].rstrip('.')}"


def did_you_mean(name: str, candidates: Iterable[str], *, are_paths: bool = False) -> str:
    """Return ` Did you mean X or Y?` with the candidates closest to `name`, or an empty string if none is close.

    Args:
        are_paths: the candidates are paths or recipe names, which are not truncated, so that they can be copied.
    """
    matches = " or ".join(difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.6))
    return f" Did you mean {matches if are_paths else shortened(matches)}?" if matches else ""
