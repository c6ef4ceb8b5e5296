"""Each head end to end: training, evaluation, prediction, and the same predictions in plain transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from bertcli.commands.evaluate import evaluate
from bertcli.commands.predict import predict
from bertcli.console import Console
from bertcli.data.prediction_inputs import PredictionInput
from bertcli.data.sources import load_split
from bertcli.errors import DataError, UsageError
from bertcli.finetuning.run import finetune
from bertcli.finetuning.setup import random_subset
from bertcli.heads.text_classification import TextClassification
from bertcli.recipe.load import load_recipe
from bertcli.reports.pages import read_run
from bertcli.runs.folder import RunOptions
from bertcli.tasks.task import Task

from ..conftest import QUIET

HEADS = {"entities": "seqeval", "questions": "squad", "open-questions": "squad_v2", "choices": "accuracy"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short training run for each head."""
    folder = tmp_path_factory.mktemp("heads")
    steps = {"entities": 40, "choices": 12, "questions": 12, "open-questions": 12}
    for name in HEADS:
        overrides = [f"training.max_steps={steps[name]}", "data.max_train_examples=300", "data.max_eval_examples=60"]
        overrides += ["training.learning_rate=2e-3", "training.global_batch_size=16", "model.vocab_size=400"]
        finetune(load_recipe(f"sample/{name}", overrides), folder / name, RunOptions(console=QUIET))
    return {name: folder / name for name in HEADS}


def predictions(run: Path, **options: Any) -> list[dict[str, Any]]:
    Path("predictions.jsonl").unlink(missing_ok=True)
    predict(str(run), PredictionInput(**options), "predictions.jsonl", console=QUIET)
    return [json.loads(line) for line in Path("predictions.jsonl").read_text("utf-8").splitlines()]


def test_training_reaches_a_score_with_every_head(runs: dict[str, Path]) -> None:
    scores = {
        name: json.loads((run / "results.json").read_text())["metrics"]["validation"] for name, run in runs.items()
    }
    assert scores["entities"]["f1"] > 0.5
    assert {"exact_match", "f1"} < set(scores["questions"])
    assert scores["open-questions"]["best_f1"] >= scores["open-questions"]["f1"]
    assert scores["choices"]["accuracy"] > 0.1


@pytest.mark.parametrize("name", HEADS)
def test_evaluate_gives_the_scores_of_the_run_and_reports_a_different_number_of_rows(
    runs: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = json.loads((runs[name] / "results.json").read_text())["metrics"]["validation"]
    note = "all 400 rows of validation; the scores in the run folder are from 60 rows (data.max_eval_examples)"
    assert evaluate(str(runs[name]), console=Console()).num_examples == 400
    assert note in " ".join(capsys.readouterr().err.split())

    def scored_rows(task: Task, split: str, mirror: Path | None) -> Dataset:
        rows = load_split(task, split, mirror)
        return random_subset(rows, 60) if split == "validation" else rows

    monkeypatch.setattr("bertcli.commands.evaluate.load_split", scored_rows)
    assert evaluate(str(runs[name]), console=Console()).metrics["validation"] == pytest.approx(expected)
    assert "max_eval_examples" not in capsys.readouterr().err


def test_saved_predictions_are_those_of_the_best_model(runs: dict[str, Path]) -> None:
    for name, run in runs.items():
        scores = json.loads((run / "results.json").read_text())["metrics"]["validation"]
        entries = read_run(run).predictions
        assert [entry["row"] for entry in entries] == list(range(1, 61))
        accuracy = sum(entry["right"] for entry in entries) / 60
        if name == "entities":
            accuracy = sum(
                gold == predicted
                for entry in entries
                for gold, predicted in zip(entry["gold"], entry["predicted"], strict=True)
            )
            accuracy /= sum(len(entry["gold"]) for entry in entries)
        score = scores.get("exact_match", scores.get("exact", 100 * scores.get("accuracy", 0.0)))
        assert 100 * accuracy == pytest.approx(score)
        if "questions" in name:
            assert 100 * (1 - sum(entry["loss"] for entry in entries) / 60) == pytest.approx(scores["f1"])
            for entry in entries:
                passage, gold_start = entry["texts"]["context"], entry["gold_start"]
                gold = entry["gold"][0] if entry["gold"] else None
                assert gold is None or passage[gold_start : gold_start + len(gold)] == gold
                assert not entry["predicted"] or passage[entry["start"] : entry["end"]] == entry["predicted"]
        assert "Worst mistakes" in (run / "report.html").read_text("utf-8")


def test_token_classification_predicts_the_tags_of_plain_transformers(runs: dict[str, Path]) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    text = "the golden otter press hired anna calloway on monday ."
    (answer,) = predictions(runs["entities"], values=[[text]])
    assert answer["words"] == text.split()
    model = AutoModelForTokenClassification.from_pretrained(runs["entities"] / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(runs["entities"] / "model")
    inputs = tokenizer(text.split(), is_split_into_words=True, return_tensors="pt")
    with torch.inference_mode():
        best = model(**inputs).logits[0].argmax(-1).tolist()
    word_ids = inputs.word_ids(0)
    firsts = [word_ids.index(word) for word in range(len(text.split()))]
    assert answer["tags"] == [model.config.id2label[best[at]] for at in firsts]
    for entity in answer["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]


def test_conll_files_for_training_and_prediction(encoder: Path) -> None:
    sentences = ["-DOCSTART- O", "", "anna B-PER", "saw O", "film O", "", "soup O", "paul B-PER", ""] * 6
    Path("train.conll").write_text("\n".join(sentences))
    Path("recipe.yaml").write_text(
        "task: {head: token_classification, files: {train: train.conll}, text_columns: [tokens], label_column: tags}\n"
        f"model: {{name: {encoder}}}\n"
        "training: {max_steps: 2}\n"
        "data: {max_length: 16}\n"
    )
    finetune(load_recipe("recipe.yaml"), Path("run"), RunOptions(console=QUIET))
    entries = predictions(Path("run"), path="train.conll")
    assert [entry["words"] for entry in entries[:2]] == [["anna", "saw", "film"], ["soup", "paul"]]


def test_question_answering_predicts_spans_of_the_passage(runs: dict[str, Path]) -> None:
    passage = "anna found the dog last week . paul saw the soup at noon ."
    found = predictions(
        runs["questions"], values=[["who saw the soup ?", passage], ["x" * 9000, passage], ["who ?", ""]]
    )
    for answer in found[:2]:
        assert answer["answer"]
        assert passage[answer["start"] : answer["end"]] == answer["answer"]
        assert 0 < answer["probability"] <= 1
        assert "context" not in answer
    assert found[2]["answer"] == ""
    assert "null_odds" in predictions(runs["open-questions"], values=[["who saw the soup ?", passage]])[0]


def test_truncated_question_is_reported_with_its_row(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [["who ?", "anna ran ."]] * 1030 + [["word " * 200, "anna ran ."]]
    assert len(predictions(runs["questions"], values=rows)) == 1031
    assert "rows 1031 (1): the question is longer than" in " ".join(capsys.readouterr().err.split())


def test_squad_json_as_input(runs: dict[str, Path]) -> None:
    question = {"id": "q1", "question": "who ?", "answers": [{"text": "anna", "answer_start": 0}]}
    content = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "anna ran .", "qas": [question]}]}]}
    Path("dev.json").write_text(json.dumps(content))
    (answer,) = predictions(runs["questions"], path="dev.json")
    assert (answer["id"], answer["question"]) == ("q1", "who ?")
    from bertcli.data.table_files import read_files

    assert read_files(["dev.json"])[0]["answers"] == {"text": ["anna"], "answer_start": [0]}


def test_squad_output_refuses_questions_with_the_same_id(runs: dict[str, Path]) -> None:
    lines = [{"id": name, "question": "who ?", "context": "anna ran ."} for name in ("q1", "q2", "q1")]
    Path("dev.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [answer["id"] for answer in predictions(runs["questions"], path="dev.jsonl")] == ["q1", "q2", "q1"]
    with pytest.raises(DataError, match=r"dev\.jsonl: questions 1 and 3 have the same id 'q1'.* --format jsonl"):
        predict(str(runs["questions"]), PredictionInput(path="dev.jsonl"), "out", "squad", console=QUIET)
    Path("dev.jsonl").write_text("\n".join(map(json.dumps, lines[:2])))
    assert predict(str(runs["questions"]), PredictionInput(path="dev.jsonl"), "new", "squad", console=QUIET) == 2
    assert [*json.loads(Path("new/predictions.json").read_text())] == ["q1", "q2"]


@pytest.mark.parametrize("name", [None, True, ["q2"], float("nan")])
def test_squad_output_refuses_ids_that_are_not_text_or_numbers(runs: dict[str, Path], name: object) -> None:
    line = {"question": "who ?", "context": "anna ran ."}
    Path("dev.jsonl").write_text(json.dumps({"id": name} | line))
    message = rf"dev\.jsonl: question 1 has the id {re.escape(json.dumps(name))}, expected a text or a number; set one"
    with pytest.raises(DataError, match=message):
        predict(str(runs["questions"]), PredictionInput(path="dev.jsonl"), "out", "squad", console=QUIET)
    Path("dev.jsonl").write_text(json.dumps({"id": 7} | line))
    predict(str(runs["questions"]), PredictionInput(path="dev.jsonl"), "out", "squad", console=QUIET)
    assert [*json.loads(Path("out/predictions.json").read_text())] == ["7"]


def test_squad_output_numbers_the_questions_of_a_file_without_ids_with_a_warning(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"question": "who ?", "context": "anna ran ."}
    Path("dev.jsonl").write_text(f"{json.dumps(line)}\n" * 2)
    predict(str(runs["questions"]), PredictionInput(path="dev.jsonl"), "out", "squad", console=QUIET)
    warning = "dev.jsonl has no column 'id' (task.id_column), so its questions are numbered from 0"
    assert warning in " ".join(capsys.readouterr().err.split())
    assert [*json.loads(Path("out/predictions.json").read_text())] == ["0", "1"]
    predict(str(runs["questions"]), PredictionInput([tuple(line.values())]), "new", "squad", console=QUIET)
    assert capsys.readouterr().err == ""
    for ids, message in (([1, None], "question 1 has an id"), ([None, 1], "question 2 has an id")):
        lines = [line if name is None else {"id": name} | line for name in ids]
        Path("dev.jsonl").write_text("\n".join(map(json.dumps, lines)))
        with pytest.raises(DataError, match=f"{message} in column 'id', but question . does not; set the ids of all"):
            predict(str(runs["questions"]), PredictionInput(path="dev.jsonl"), "other", "squad", console=QUIET)


def test_multiple_choice_predicts_index_and_text(runs: dict[str, Path]) -> None:
    endings = ["it was dish .", "it was animal .", "it was sky .", "it was herd ."]
    (answer,) = predictions(runs["choices"], values=[["anna saw the dog at noon .", *endings]])
    assert answer["answer"] == endings[answer["choice"]]
    assert sum(answer["probabilities"]) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(UsageError, match="choices with --choice"):
        predictions(runs["choices"], values=[["only a text"]])


def test_split_is_predicted_in_its_order(runs: dict[str, Path]) -> None:
    found = predictions(runs["questions"], split="test")
    assert len(found) == 400
    assert [answer["id"] for answer in found[:2]] == ["questions-2400", "questions-2401"]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("kind", ["csv", pytest.param("tsv", marks=pytest.mark.slow)])
def test_csv_output_of_every_head_has_the_same_columns_in_every_line(
    runs: dict[str, Path], name: str, kind: str
) -> None:
    import csv

    predict(str(runs[name]), PredictionInput(split="test"), f"out.{kind}", kind, console=QUIET)
    with Path(f"out.{kind}").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="," if kind == "csv" else "\t"))
    assert len(rows) == 401
    assert {len(row) for row in rows} == {len(rows[0])}


def test_mixed_inputs_are_rejected(runs: dict[str, Path]) -> None:
    Path("in.jsonl").write_text('{"tokens": ["a", "b"]}\n{"tokens": "a b"}\n')
    with pytest.raises(DataError, match="has a text in row 2 and a list of texts in row 1"):
        predictions(runs["entities"], path="in.jsonl")


@pytest.mark.parametrize(
    ("task_labels", "model_labels", "expected"),
    [
        (("no", "yes"), ("no", "yes"), 1),
        (("no", "yes"), ("yes", "no"), 0),
        (("a", "b", "c"), ("c", "b", "a"), 1),
        ((), ("a", "b"), 1),
    ],
)
def test_binary_f1_scores_the_second_label_of_the_task(
    task_labels: tuple[str, ...], model_labels: tuple[str, ...], expected: int
) -> None:
    task = Task(dataset="x", text_columns=("text",), labels=task_labels)
    assert TextClassification("single_label", model_labels).positive_label_id(task) == expected
