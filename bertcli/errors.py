"""What can go wrong, as a small tree; each kind knows the exit code it ends the program with.

A message names what was found, what was expected and what to do about it. The command line prints it and
nothing else; `--debug` adds the traceback.

Exit codes: 0 done · 1 failure · 2 wrong usage or recipe · 130 stopped by Ctrl-C · 143 stopped by SIGTERM · 85 stopped
by SIGUSR1, which batch systems send ahead of the end of a job's time: put it in the queue again.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable

REQUEUE = 85


class BertcliError(Exception):
    """Anything a person can mend. The message holds the cure."""

    exit_code = 1


class UsageError(BertcliError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class RecipeError(BertcliError):
    """A recipe that cannot be used; `problems` holds every mistake found, each with its place."""

    exit_code = 2

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class DataError(BertcliError):
    """Data that are missing, unreadable or not what the task row says."""


class ModelError(BertcliError):
    """A model that is missing, unreadable or disagrees with the task."""


class HubError(BertcliError):
    """The hub does not answer, or does not give or take what is asked of it."""


class RunFolderError(BertcliError):
    """A run folder that cannot be written, or must not be."""

    exit_code = 2


class DiskError(BertcliError):
    """A disk without room, or one that has spoilt what was saved on it."""


class ClusterError(BertcliError):
    """The cluster does not take a job."""


class TrainingError(BertcliError):
    """Training cannot go on, such as a loss that is no longer a number."""


class Interrupted(BertcliError):  # noqa: N818 - not an error of anything
    """A signal asked the program to stop; what was done until then is saved."""

    def __init__(self, signal_number: int, message: str):
        self.exit_code = exit_code_of(signal_number)
        super().__init__(message)


def exit_code_of(signal_number: int) -> int:
    """The exit code that tells of a signal."""
    return REQUEUE if signal_number == signal.SIGUSR1 else 128 + signal_number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean X or Y?` for the known names nearest to `name`, or nothing if none is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""
