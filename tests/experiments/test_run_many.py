import pytest

from bertcli.errors import TrainingError
from bertcli.experiments.run_many import raise_if_failed


def test_failed_runs_are_named_and_others_only_if_there_are_some() -> None:
    raise_if_failed({}, 2, "folds")
    with pytest.raises(TrainingError, match=r"^1 of 2 folds failed: fold-1\. .* again; the others are finished\.$"):
        raise_if_failed({"fold-1": "broken"}, 2, "folds")
    with pytest.raises(TrainingError, match=r"^2 of 2 folds failed: fold-1; fold-2\. .* to try them again\.$"):
        raise_if_failed({"fold-1": "broken", "fold-2": "broken"}, 2, "folds")
