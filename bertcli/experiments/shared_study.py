"""The trials of a search, in a journal that all its worker processes share, on one machine or on many.

The journal is that of an Optuna study. A worker proposes a trial or takes over one that was interrupted, holds its lock
while it trains, and reports scores. What each trial proposes depends only on the seed, its number and the trials before
it, so a search that was killed and resumed proposes what an undisturbed one does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.errors import RunFolderError, UsageError
from bertcli.files import file_lock
from bertcli.recipe.member_names import TRIAL_NAME, trial_name
from bertcli.recipe.search import Distribution
from bertcli.runs.claim import remove_run
from bertcli.runs.folder import SEARCH, SUMMARY, RunFolder

if TYPE_CHECKING:
    import optuna

JOURNAL = "search.journal"
STUDY_NAME = "search"  # in the journal
LOCK = ".search.lock"  # held while a trial is assigned
NUM_RUNGS = 20  # evaluations are compared at this many shares of a run, whatever its number of steps
MIN_TRIALS_TO_PRUNE = 5  # no trial is pruned before this many are complete …
MIN_SCORES_TO_PRUNE = 3  # … and this many of them were evaluated at the same share of the run
MIN_TRIALS_FOR_IMPORTANCES = 5
LOCK_GRACE_SECONDS = 10  # after which the journal's lock is that of a killed process; it is held for milliseconds


def check_optuna() -> None:
    """Check that Optuna is installed.

    Raises:
        UsageError: if it is not; the message says how to install it.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            f'a search needs {error.name}, which is not installed: pip install "bertcli[search]"'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def propose(trials: Sequence[optuna.trial.FrozenTrial], space: Mapping[str, Distribution], seed: int) -> dict[str, Any]:
    """Propose values for the next trial by TPE, from the scores of the trials so far; random values for the first ten.

    Args:
        trials: of the search, finished or not.
        seed: of the search.
    """
    import optuna

    number = len(trials)
    sampler = optuna.samplers.TPESampler(seed=int(np.random.SeedSequence((seed, number)).generate_state(1)[0]))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(trials)
    return study.ask(_to_optuna(space)).params


def _to_optuna(space: Mapping[str, Distribution]) -> dict[str, optuna.distributions.BaseDistribution]:
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

    build: dict[str, Callable[..., BaseDistribution]] = {
        "uniform": FloatDistribution,
        "log_uniform": lambda low, high: FloatDistribution(low, high, log=True),
        "int": IntDistribution,
        "choice": lambda *values: CategoricalDistribution(values),
    }
    return {key: build[distribution.kind](*distribution.values) for key, distribution in space.items()}


@dataclass(frozen=True, eq=False)
class TrialRecord:
    """What the journal has on a trial.

    Attributes:
        is_finished: whether it was trained to its end or pruned.
        is_in_progress: whether another process trains it.
        error: why it failed; it is not finished then, and is tried again by workers that start later.
    """

    number: int
    values: dict[str, Any]
    is_finished: bool
    is_pruned: bool
    is_in_progress: bool
    error: str | None

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return trial_name(self.number)


class SharedStudy:
    """The trials of a search in a folder, read from and written to its journal.

    Raises:
        RunFolderError: if the journal is damaged.
    """

    def __init__(self, folder: Path, space: Mapping[str, Distribution], seed: int):
        check_optuna()
        import optuna

        self._folder, self._space, self._seed = folder, space, seed
        self._started_at = time.time()
        with self._assigning():
            try:
                self._storage = _open_journal(folder / JOURNAL)
                self._study = optuna.create_study(
                    study_name=STUDY_NAME,
                    direction="maximize",
                    storage=self._storage,
                    sampler=optuna.samplers.RandomSampler(),  # not used: `propose` has its own
                    pruner=optuna.pruners.MedianPruner(MIN_TRIALS_TO_PRUNE, n_min_trials=MIN_SCORES_TO_PRUNE),
                    load_if_exists=True,
                )
            except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:  # of its lines
                raise RunFolderError(
                    f"cannot read {folder / JOURNAL}, the journal of the search ({error!s:.80}). Restore it, choose "
                    "another folder with --run, or start over with --overwrite."
                ) from error

    def records(self) -> list[TrialRecord]:
        """Return all trials by number."""
        with self._assigning():
            # In this order, a trial that finishes meanwhile is not taken for an interrupted one.
            unfinished = [trial.number for trial in self._trials() if not trial.state.is_finished()]
            in_progress = {number for number in unfinished if _is_held(self._lock(number))}
            trials = self._trials()
        return [
            TrialRecord(
                number=trial.number,
                values=dict(trial.params),
                is_finished=trial.state.is_finished(),
                is_pruned="pruned" in trial.user_attrs,
                is_in_progress=trial.number in in_progress and not trial.state.is_finished(),
                error=trial.user_attrs.get("error"),
            )
            for trial in trials
        ]

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    @contextmanager
    def next_trial(self, num_trials: int, budget_seconds: float | None) -> Iterator[HeldTrial | None]:
        """Hold the next trial to train until the block ends: an interrupted or failed one, else a new one.

        None if there are `num_trials`, or their time exceeds the budget, and the unfinished ones are held by other
        processes or have failed since this process started.
        """
        with ExitStack() as held:
            with self._assigning():
                trial = self._resumable(held) or self._new(held, num_trials, budget_seconds)
            yield trial

    def _resumable(self, held: ExitStack) -> HeldTrial | None:
        for trial in self._trials():
            if trial.state.is_finished() or trial.user_attrs.get("failed_at", 0.0) >= self._started_at:
                continue
            try:
                held.enter_context(file_lock(self._lock(trial.number), _refuse))
            except _HeldError:
                continue
            return self._held_trial(trial)
        return None

    def _new(self, held: ExitStack, num_trials: int, budget_seconds: float | None) -> HeldTrial | None:
        from optuna.trial import TrialState, create_trial

        trials = self._trials()
        seconds = sum(trial.user_attrs.get("seconds", 0.0) for trial in trials)
        if len(trials) >= num_trials or (budget_seconds is not None and seconds >= budget_seconds):
            return None
        values, distributions = propose(trials, self._space, self._seed), _to_optuna(self._space)
        held.enter_context(file_lock(self._lock(len(trials)), _refuse))
        # In one line of the journal, so that no trial lacks some of its values if this process is killed.
        self._study.add_trial(create_trial(state=TrialState.RUNNING, params=values, distributions=distributions))
        return self._held_trial(self._trials()[-1])

    def _held_trial(self, trial: optuna.trial.FrozenTrial) -> HeldTrial:
        import optuna

        study_id = self._storage.get_study_id_from_name(STUDY_NAME)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        return HeldTrial(self._study, optuna.trial.Trial(self._study, trial_id))

    def importances(self) -> dict[str, float]:
        """Return the share of each key in the variance of the scores (fANOVA), largest first.

        Empty if fewer than `MIN_TRIALS_FOR_IMPORTANCES` trials are complete, or their scores are equal.
        """
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances
        from optuna.trial import TrialState

        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(complete) < MIN_TRIALS_FOR_IMPORTANCES or len({trial.value for trial in complete}) == 1:
            return {}
        return get_param_importances(self._study, evaluator=FanovaImportanceEvaluator(seed=self._seed))

    def _assigning(self) -> Any:
        return file_lock(self._folder / LOCK, lambda owner: None)

    def _lock(self, number: int) -> Path:
        return self._folder / f".{trial_name(number)}.lock"


class HeldTrial:
    """A trial that this process trains."""

    def __init__(self, study: optuna.Study, trial: optuna.trial.Trial):
        self.number, self.values = trial.number, dict(trial.params)
        self._study, self._trial = study, trial

    @property
    def is_pruned(self) -> bool:
        """Whether `reason_to_stop` gave a reason."""
        return "pruned" in self._current.user_attrs

    @property
    def _current(self) -> optuna.trial.FrozenTrial:
        return self._study.get_trials(deepcopy=False)[self.number]

    def reason_to_stop(self, share: float, score: float) -> str | None:
        """Record a score; return why to prune the trial: its scores so far are below the median of complete trials.

        Scores are compared at the same share of a run, where the learning rate is at the same point of its schedule.

        Args:
            share: share of the run that is completed.
            score: of the evaluation; the highest is the best.
        """
        rung = round(share * NUM_RUNGS)
        if rung not in self._current.intermediate_values:
            self._trial.report(score, rung)
        if not self.is_pruned and self._trial.should_prune():
            self._trial.set_user_attr("pruned", rung)
        return f"below the median of the trials after {share:.0%} of the run" if self.is_pruned else None

    def add_seconds(self, seconds: float) -> None:
        """Add to the time that the trial took."""
        self._trial.set_user_attr("seconds", self._current.user_attrs.get("seconds", 0.0) + seconds)

    def finish(self, score: float) -> None:
        """Report the final score, of which the highest is the best; of a pruned trial, the last evaluation counts."""
        from optuna.trial import TrialState

        if self.is_pruned:
            self._study.tell(self.number, state=TrialState.PRUNED)
        else:
            self._study.tell(self.number, score)

    def fail(self, error: str) -> None:
        """Record why the trial failed."""
        self._trial.set_user_attr("error", error)
        self._trial.set_user_attr("failed_at", time.time())


def remove_search(folder: Path) -> None:
    """Remove the trials of a search, its journal and its results; other files are kept.

    Raises:
        RunFolderError: if a process trains a trial, or a trial's folder of models or checkpoints holds other files.
    """
    for lock in sorted(folder.glob(".*.lock")):
        trial = lock.stem.removeprefix(".")
        if TRIAL_NAME.fullmatch(trial) and _is_held(lock):
            raise RunFolderError(f"{folder / trial} is in use by another process; wait until it ends")
    (folder / JOURNAL).unlink(missing_ok=True)  # first: without it, trials that are left over are trained again
    for recipe in sorted(folder.glob("*/recipe.yaml")):
        if TRIAL_NAME.fullmatch(recipe.parent.name):  # others are copies that a person made
            remove_run(recipe.parent)
    run = RunFolder(folder)
    for path in (run.results, run.card, run.report, folder / SUMMARY, folder / SEARCH):
        path.unlink(missing_ok=True)


class _HeldError(Exception):
    """Another process holds the lock."""


def _is_held(lock: Path) -> bool:
    """Return whether a process holds the lock of a trial, which it trains."""
    try:
        with file_lock(lock, _refuse):
            return False
    except _HeldError:
        return True


def _refuse(owner: str) -> None:
    raise _HeldError(owner)


def _open_journal(path: Path) -> optuna.storages.BaseStorage:
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage

    class Lock(JournalFileSymlinkLock):
        """A lock that also works over NFS. Acquiring it drops a line that a killed process left incomplete."""

        def acquire(self) -> bool:
            acquired = super().acquire()
            drop_incomplete_line(path)
            return acquired

    name = str(path.absolute())  # the lock is a symbolic link to it
    return JournalStorage(JournalFileBackend(name, Lock(name, LOCK_GRACE_SECONDS)))


def drop_incomplete_line(path: Path) -> None:
    """Truncate a file after its last line break."""
    with path.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
