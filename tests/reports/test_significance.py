"""Sentences that compare two runs: by points or by errors, with one seed or several."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.metrics.answers import collect_answers, save_answers

from .test_comparison import write_run


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_labels(name: str, num_right: int, *, num_rows: int = 100, metrics: tuple[str, ...] = ("accuracy",)) -> str:
    """A finished run with as many right answers, to the first of the rows."""
    gold = np.arange(num_rows) % 2
    predicted = np.where(np.arange(num_rows) < num_right, gold, 1 - gold)
    write_run(name, [num_right / num_rows], "accuracy")
    Path(name, "predictions").mkdir()
    answers = collect_answers(metrics, "single_label", predicted, gold, labels=("no", "yes"))
    save_answers(Path(name, "predictions/validation.npz"), answers)
    return name


def report(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["report", *arguments, "--significance"])
    return result.output


def test_the_better_run_is_named_with_interval_and_p_value() -> None:
    names = write_labels("weak", 70), write_labels("strong", 82)
    expected = "strong is better: accuracy +12.00 points, 95 % interval 6.00 to 19.00, p < 0.001 (McNemar's exact test)"
    assert expected in report(*names)
    assert expected in report(*names[::-1])
    (entry,) = json.loads(report(*names, "--json"))["significance"]
    assert (entry["score"], entry["first"], entry["second"]) == ("accuracy", 0.7, 0.82)
    assert entry["difference"] == pytest.approx(0.12)
    assert entry["p_value"] == pytest.approx(2 * 0.5**12)


def test_runs_that_could_be_equally_good_are_not_called_better() -> None:
    names = write_labels("weak", 70), write_labels("strong", 73)
    assert "no clear difference: accuracy of strong +3.00 points, 95 % interval 0.00 to 7.00, p 0.250" in report(*names)
    assert "no difference: accuracy 0.7000 of both\n" in report("weak", write_labels("equal", 70))


def test_errors_are_compared_in_their_own_units() -> None:
    gold = np.arange(60.0)
    for name, error in (("weak", 2.0), ("strong", 1.5)):
        write_run(name, [error], "mae")
        Path(name, "predictions").mkdir()
        signs = np.where(gold % 2, 1, -1)
        answers = collect_answers(["mae"], "regression", gold + error * signs * (1 + gold % 3), gold)
        save_answers(Path(name, "predictions/validation.npz"), answers)
    assert "strong is better: mae -1, 95 % interval -1.108 to -0.8998, p < 0.001" in report("weak", "strong")


def test_seeds_are_averaged() -> None:
    for name, counts in (("weak", (60, 64)), ("strong", (75, 73))):
        for seed, num_right in enumerate(counts, start=1):
            write_labels(f"{name}/seed-{seed}", num_right)
    assert "strong is better: accuracy +12.00 points" in report("weak", "strong")
    assert "approximate randomization" in report("weak", "strong")
    assert "found 2 and 1 seeds" in report("weak", "strong/seed-1")


def test_runs_that_cannot_be_compared_are_refused() -> None:
    write_labels("first", 70)
    assert "compares two runs, found 1" in report("first")
    assert "scored on different rows" in report("first", write_labels("longer", 70, num_rows=110))
    assert "none of them in both" in report("first", write_labels("other", 70, metrics=("f1",)))
    assert "found no bare/predictions/validation.npz" in report("first", write_run("bare", [0.5], "accuracy"))
    answers, other = Path("first/predictions/validation.npz"), write_labels("second", 71)
    saved = answers.read_bytes()
    position = saved.index(b"predicted.npy") + len("predicted.npy")
    damaged = bytearray(saved)
    damaged[position + 25 : position + 60] = bytes(35)  # of its compressed array
    for content in (b"PK damaged", b"", saved[:-30], bytes(damaged)):
        answers.write_bytes(content)
        assert "cannot read the answers" in report("first", other)
    np.savez(answers, gold=np.zeros(3))
    assert "found no gold_hash, metrics" in report("first", other)


def test_cross_validations_are_compared_on_the_rows_of_all_folds() -> None:
    for name, counts in (("weak", (30, 40)), ("strong", (36, 46))):
        folds = {f"fold-{fold}": num_right for fold, num_right in enumerate(counts, start=1)}
        for (fold, num_right), num_rows in zip(folds.items(), (50, 51), strict=True):
            write_labels(f"{name}/{fold}", num_right, num_rows=num_rows)
        Path(name, "results.json").write_text(json.dumps({"folds": {fold: {} for fold in folds}}))
    (entry,) = json.loads(report("weak", "strong", "--json"))["significance"]
    assert (entry["first"], entry["second"]) == pytest.approx((70 / 101, 82 / 101))
    assert entry["test"] == "McNemar's exact test"


def test_rows_with_other_texts_are_reported() -> None:
    names = write_labels("first", 70), write_labels("second", 82)
    for name, texts in zip(names, ({"a": "x", "b": "y"}, {"b": "y", "c": "z"}), strict=True):
        Path(name, "predictions/validation.jsonl").write_text(json.dumps({"gold": "no", "texts": texts}) + "\n")
    assert "differ" not in report(*names)
    Path("second/predictions/validation.jsonl").write_text(json.dumps({"gold": "no", "texts": {"b": "?"}}) + "\n")
    assert "the texts of some rows of first and second differ" in report(*names)


def test_answers_that_were_changed_after_training_are_named() -> None:
    names = write_labels("plain", 70), write_labels("tuned", 82)
    results = Path("tuned/results.json")
    content = json.loads(results.read_text())
    content["metrics"]["validation_tuned"] = content["metrics"]["validation"]
    results.write_text(json.dumps(content | {"temperature": 1.5}))
    assert "compared are the answers of tuned after calibration and with tuned thresholds" in report(*names)
    assert "the answers of plain" not in report(*names)
