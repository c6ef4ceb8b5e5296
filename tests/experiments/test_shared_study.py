"""The journal of a search: proposals that a kill does not change, held trials, pruning, and incomplete lines."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from optuna.storages.journal import JournalFileSymlinkLock

from bertcli.errors import UsageError
from bertcli.experiments import shared_study
from bertcli.experiments.shared_study import JOURNAL, HeldTrial, SharedStudy
from bertcli.recipe.search import Distribution

SPACE = {
    "learning_rate": Distribution("log_uniform", (1e-5, 1e-3)),
    "epochs": Distribution("int", (1, 4)),
    "label_smoothing": Distribution("uniform", (0.0, 0.3)),
    "schedule": Distribution("choice", ("linear", None, True, 3)),
}


def open_study(folder: str = "search", seed: int = 1) -> SharedStudy:
    Path(folder).mkdir(exist_ok=True)
    return SharedStudy(Path(folder), SPACE, seed)


def train(study: SharedStudy, num_trials: int, score: Callable[[HeldTrial], float], budget: float | None = None) -> int:
    """Finish all trials; return how many there were."""
    for count in range(num_trials + 1):
        with study.next_trial(num_trials, budget) as trial:
            if trial is None:
                return count
            trial.add_seconds(10)
            trial.finish(score(trial))
    raise AssertionError("too many trials")


def closeness(trial: HeldTrial) -> float:
    """The score of a search whose best values are an epoch number of 3 and little smoothing."""
    return -abs(trial.values["epochs"] - 3) - trial.values["label_smoothing"]


def all_values(study: SharedStudy) -> list[dict[str, Any]]:
    return [trial.values for trial in study.records()]


def test_proposals_depend_on_the_seed_and_the_scores_and_not_on_the_process() -> None:
    whole = open_study("whole")
    assert train(whole, 14, closeness) == 14
    for num_trials in (2, 3, 9, 12, 14):  # another process for each
        train(open_study("parts"), num_trials, closeness)
    assert all_values(open_study("parts")) == all_values(whole)
    train(study := open_study("reversed"), 14, lambda trial: -closeness(trial))
    assert all_values(study)[:10] == all_values(whole)[:10]  # random
    assert all_values(study)[10:] != all_values(whole)[10:]  # by TPE
    train(study := open_study("other seed", seed=2), 2, closeness)
    assert all_values(study) != all_values(whole)[:2]
    assert len({str(values) for values in all_values(whole)}) == 14
    for values in all_values(whole):
        assert 1e-5 <= values["learning_rate"] <= 1e-3
        assert values["epochs"] in (1, 2, 3, 4)
        assert 0 <= values["label_smoothing"] <= 0.3
        assert values["schedule"] in ("linear", None, True, 3)


def test_interrupted_trial_is_taken_over_and_a_held_one_is_not() -> None:
    study, other = open_study(), open_study()
    with ExitStack() as stack:
        first = stack.enter_context(study.next_trial(2, None))
        with other.next_trial(2, None) as second:
            assert first is not None
            assert second is not None
            assert (first.number, second.number) == (0, 1)
            assert [trial.is_in_progress for trial in other.records()] == [True, True]
            with open_study().next_trial(2, None) as third:
                assert third is None
        with open_study().next_trial(2, None) as resumed:  # `second` was interrupted
            assert resumed is not None
            assert (resumed.number, resumed.values) == (1, second.values)
            resumed.finish(0.5)
    assert [(trial.is_finished, trial.is_in_progress) for trial in study.records()] == [(False, False), (True, False)]


def test_killed_process_leaves_no_lock() -> None:
    open_study()
    code = (
        "import sys; from pathlib import Path; from tests.experiments.test_shared_study import open_study\n"
        "with open_study().next_trial(1, None): print('held', flush=True); sys.stdin.read()"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), *sys.path]))
    }
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    study = open_study()
    assert [trial.is_in_progress for trial in study.records()] == [True]
    child.kill()
    child.communicate()
    with study.next_trial(1, None) as trial:
        assert trial is not None
        assert trial.number == 0


def test_failed_trial_is_tried_again_only_by_processes_that_start_later() -> None:
    study, concurrent = open_study(), open_study()
    with study.next_trial(1, None) as trial:
        assert trial is not None
        trial.fail("no memory")
    for worker in (study, concurrent):
        with worker.next_trial(1, None) as none:
            assert none is None
    (record,) = study.records()
    assert (record.error, record.is_finished, record.is_in_progress) == ("no memory", False, False)
    assert train(open_study(), 1, closeness) == 1


def test_search_starts_no_trial_once_its_budget_is_used_up() -> None:
    assert train(open_study(), 9, closeness, budget=25) == 3
    assert train(open_study(), 9, closeness, budget=40) == 1


def test_trial_below_the_median_at_the_same_share_of_the_run_is_pruned() -> None:
    study = open_study()

    def report(trial: HeldTrial) -> float:
        for share in (0.25, 0.5):
            assert trial.reason_to_stop(share, trial.number + share) is None  # each is better than those before it
        return trial.number

    train(study, 5, report)
    with study.next_trial(6, None) as trial:
        assert trial is not None
        assert trial.reason_to_stop(0.33, 0.0) is None  # nothing to compare with
        assert trial.reason_to_stop(0.5, 2.5) is None  # the median
        assert trial.reason_to_stop(0.75, 0.0) is None
        trial.finish(2.5)
    with study.next_trial(7, None) as trial:
        assert trial is not None
        assert trial.reason_to_stop(0.25, 0.0) == "below the median of the trials after 25% of the run"
    with open_study().next_trial(7, None) as resumed:  # killed before it finished
        assert resumed is not None
        assert resumed.number == 6
        assert resumed.reason_to_stop(0.25, 0.0) == "below the median of the trials after 25% of the run"
        resumed.finish(0.0)
    assert [trial.is_pruned for trial in study.records()] == [False] * 6 + [True]


def test_incomplete_line_of_a_killed_process_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    train(open_study(), 3, closeness)
    journal = Path("search", JOURNAL)
    values = all_values(open_study())
    journal.write_bytes(journal.read_bytes() + b'{"op_code":4,"worker')
    train(study := open_study(), 4, closeness)
    assert all_values(study)[:3] == values
    assert len(open_study().records()) == 4
    monkeypatch.setattr(shared_study, "LOCK_GRACE_SECONDS", 1)

    def kill(lock: JournalFileSymlinkLock) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(JournalFileSymlinkLock, "release", kill)
        with pytest.raises(KeyboardInterrupt):
            open_study()
    started_at = time.monotonic()
    assert train(open_study(), 5, closeness) == 1
    assert time.monotonic() - started_at < 10


def test_importances_require_several_different_scores() -> None:
    study = open_study()
    train(study, 4, closeness)
    assert study.importances() == {}
    train(study, 12, closeness)
    importances = study.importances()
    assert next(iter(importances)) == "epochs"
    assert sum(importances.values()) == pytest.approx(1)
    train(equal := open_study("equal"), 6, lambda trial: 1.0)
    assert equal.importances() == {}


def test_search_without_optuna_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        UsageError, match=r'a search needs optuna, which is not installed: pip install "bertcli\[search\]"'
    ):
        open_study()
