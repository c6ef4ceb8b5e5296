"""Each kind of answer from a recipe to predictions: trained, scored, reloaded, the same in plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from bertcli.commands.evaluate import evaluate
from bertcli.commands.predict import predict
from bertcli.console import Console
from bertcli.data.sources import load_split
from bertcli.errors import DataError, UsageError
from bertcli.finetuning.run import finetune
from bertcli.recipe.load import load_recipe
from bertcli.reports.pages import read_run
from bertcli.runs.folder import RunOptions
from bertcli.tasks.task import Task

QUIET = Console(quiet=True)
HEADS = {"entities": "seqeval", "questions": "squad", "open-questions": "squad_v2", "choices": "accuracy"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short run for each head."""
    folder = tmp_path_factory.mktemp("heads")
    steps = {"entities": 40, "choices": 12, "questions": 12, "open-questions": 12}
    for name in HEADS:
        words = [f"training.max_steps={steps[name]}", "data.max_train_examples=300", "data.max_eval_examples=60"]
        words += ["training.learning_rate=2e-3", "training.global_batch_size=16", "model.vocabulary_size=400"]
        finetune(load_recipe(f"sample/{name}", words), folder / name, RunOptions(console=QUIET))
    return {name: folder / name for name in HEADS}


def answers(run: Path, **options: Any) -> list[dict[str, Any]]:
    Path("answers.jsonl").unlink(missing_ok=True)
    predict(str(run), output="answers.jsonl", console=QUIET, **options)
    return [json.loads(line) for line in Path("answers.jsonl").read_text("utf-8").splitlines()]


def test_every_head_learns_something(runs: dict[str, Path]) -> None:
    scores = {
        name: json.loads((run / "results.json").read_text())["metrics"]["validation"] for name, run in runs.items()
    }
    assert scores["entities"]["f1"] > 0.5
    assert {"exact_match", "f1"} < set(scores["questions"])
    assert scores["open-questions"]["best_f1"] >= scores["open-questions"]["f1"]
    assert scores["choices"]["accuracy"] > 0.1


@pytest.mark.parametrize("name", HEADS)
def test_eval_repeats_the_results_of_the_same_rows_and_says_when_there_are_more(
    runs: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads((runs[name] / "results.json").read_text())["metrics"]["validation"]
    words = "all 400 rows of validation; the run's numbers are of 60 (data.max_eval_examples)"
    assert evaluate(str(runs[name]), console=Console())["num_examples"] == 400
    assert words in capsys.readouterr().err

    def first_rows(task: Task, split: str, mirror: Path | None) -> Dataset:
        rows = load_split(task, split, mirror)
        return rows.select(range(60)) if split == "validation" else rows

    monkeypatch.setattr("bertcli.commands.evaluate.load_split", first_rows)
    assert evaluate(str(runs[name]), console=Console())["metrics"]["validation"] == pytest.approx(told)
    assert "max_eval_examples" not in capsys.readouterr().err


def test_the_answers_that_are_kept_are_those_of_the_best_model(runs: dict[str, Path]) -> None:
    for name, run in runs.items():
        told = json.loads((run / "results.json").read_text())["metrics"]["validation"]
        lines = read_run(run).answers
        assert [line["row"] for line in lines] == list(range(1, 61))
        share = sum(line["right"] for line in lines) / 60
        if name == "entities":
            share = sum(
                tag == found for line in lines for tag, found in zip(line["gold"], line["predicted"], strict=True)
            )
            share /= sum(len(line["gold"]) for line in lines)
        score = told.get("exact_match", told.get("exact", 100 * told.get("accuracy", 0.0)))
        assert 100 * share == pytest.approx(score)
        if "questions" in name:
            assert 100 * (1 - sum(line["loss"] for line in lines) / 60) == pytest.approx(told["f1"])
            for line in lines:
                passage, gold = line["texts"]["context"], line["gold_start"]
                assert not line["gold"] or passage[gold : gold + len(line["gold"][0])] == line["gold"][0]
                assert not line["predicted"] or passage[line["start"] : line["end"]] == line["predicted"]
        assert "Worst mistakes" in (run / "report.html").read_text("utf-8")


def test_words_get_tags_and_entities(runs: dict[str, Path]) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    text = "the golden otter press hired anna calloway on monday ."
    (answer,) = answers(runs["entities"], values=[[text]])
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


def test_conll_files_are_learned_from_and_answered(encoder: Path) -> None:
    sentences = ["-DOCSTART- O", "", "anna B-PER", "saw O", "film O", "", "soup O", "paul B-PER", ""] * 6
    Path("train.conll").write_text("\n".join(sentences))
    Path("recipe.yaml").write_text(
        "task: {head: token_classification, files: {train: train.conll}, text_columns: [tokens], label_column: tags}\n"
        f"model: {{name: {encoder}}}\n"
        "training: {max_steps: 2}\n"
        "data: {max_length: 16}\n"
    )
    finetune(load_recipe("recipe.yaml"), Path("run"), RunOptions(console=QUIET))
    found = answers(Path("run"), input_path="train.conll")
    assert [answer["words"] for answer in found[:2]] == [["anna", "saw", "film"], ["soup", "paul"]]


def test_questions_are_answered_with_spans_of_the_passage(runs: dict[str, Path]) -> None:
    passage = "anna found the dog last week . paul saw the soup at noon ."
    found = answers(runs["questions"], values=[["who saw the soup ?", passage], ["x" * 9000, passage], ["who ?", ""]])
    for answer in found[:2]:
        assert answer["answer"]
        assert passage[answer["start"] : answer["end"]] == answer["answer"]
        assert 0 < answer["probability"] <= 1
        assert "context" not in answer
    assert found[2]["answer"] == ""
    assert "null_odds" in answers(runs["open-questions"], values=[["who saw the soup ?", passage]])[0]


def test_a_question_that_is_cut_is_reported_with_its_row(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [["who ?", "anna ran ."]] * 1030 + [["word " * 200, "anna ran ."]]
    assert len(answers(runs["questions"], values=rows)) == 1031
    assert "rows 1031 (1): the question is longer than" in " ".join(capsys.readouterr().err.split())


def test_official_squad_json_is_read(runs: dict[str, Path]) -> None:
    asked = {"id": "q1", "question": "who ?", "answers": [{"text": "anna", "answer_start": 0}]}
    content = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "anna ran .", "qas": [asked]}]}]}
    Path("dev.json").write_text(json.dumps(content))
    (answer,) = answers(runs["questions"], input_path="dev.json")
    assert (answer["id"], answer["question"]) == ("q1", "who ?")
    from bertcli.data.table_files import read_files

    assert read_files(["dev.json"])[0]["answers"] == {"text": ["anna"], "answer_start": [0]}


def test_a_choice_is_made_by_number_and_text(runs: dict[str, Path]) -> None:
    endings = ["it was dish .", "it was animal .", "it was sky .", "it was herd ."]
    (answer,) = answers(runs["choices"], values=[["anna saw the dog at noon .", *endings]])
    assert answer["answer"] == endings[answer["choice"]]
    assert sum(answer["probabilities"]) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(UsageError, match="choices with --choice"):
        answers(runs["choices"], values=[["only a text"]])


def test_a_split_is_answered_in_its_order(runs: dict[str, Path]) -> None:
    found = answers(runs["questions"], split="test")
    assert len(found) == 400
    assert [answer["id"] for answer in found[:2]] == ["questions-2400", "questions-2401"]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_tables_of_every_head_have_the_same_columns_in_every_line(runs: dict[str, Path], name: str, kind: str) -> None:
    import csv

    predict(str(runs[name]), output=f"out.{kind}", format_name=kind, split="test", console=QUIET)
    with Path(f"out.{kind}").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="," if kind == "csv" else "\t"))
    assert len(rows) == 401
    assert {len(row) for row in rows} == {len(rows[0])}


def test_mixed_inputs_are_refused_in_one_message(runs: dict[str, Path]) -> None:
    Path("in.jsonl").write_text('{"tokens": ["a", "b"]}\n{"tokens": "a b"}\n')
    with pytest.raises(DataError, match="some inputs hold texts where others hold lists"):
        answers(runs["entities"], input_path="in.jsonl")
