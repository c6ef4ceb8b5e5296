"""From messy files to a model without an edit: `init`, a dry run of `finetune`, for some also predictions."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.commands.init import InitResult, choose_epochs
from bertcli.commands.init import init as run_init
from bertcli.commands.predict import predict
from bertcli.data.inferred_task import Choices
from bertcli.data.prediction_inputs import PredictionInput
from bertcli.data.sources import load_training_rows
from bertcli.errors import DataError, UsageError
from bertcli.finetuning.run import finetune
from bertcli.recipe.load import load_recipe, recipe_task
from bertcli.runs.folder import RunOptions

from ..conftest import QUIET

init = partial(run_init, output=Path("recipe.yaml"))
NOUNS = ["film", "soup", "train", "day", "book", "harbour", "song", "city"]
GOOD, BAD = ["fine", "lovely", "good"], ["bad", "awful", "dull"]
NAMES = ["Anna", "Bruno", "Clara", "Émile"]
CITIES = ["Oslo", "Paris", "Köln"]


def reviews(number: int = 24) -> list[tuple[str, bool]]:
    return [
        (f"the {NOUNS[at % 8]} number {at} was {(GOOD if at % 2 else BAD)[at % 3]}, really", bool(at % 2))
        for at in range(number)
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[object]], delimiter: str = ",") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerows([header, *rows])
    return text.getvalue()


def lines(rows: Sequence[object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def span_rows(number: int = 16) -> list[tuple[str, list[tuple[int, int, str]]]]:
    """Return texts with the character offsets of a name and of a city, after an emoji in some."""
    rows = []
    for at in range(number):
        name, city = NAMES[at % 4], CITIES[at % 3]
        text = f"{'🎈 ' * (at % 2)}{name}'s train to {city}-Süd left."
        start = text.index(city)
        rows.append(
            (text, [(text.index(name), text.index(name) + len(name), "PER"), (start, start + len(city), "LOC")])
        )
    return rows


def utf16_length(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def label_studio() -> str:
    tasks = []
    for number, (text, spans) in enumerate(span_rows()):
        result = [
            {
                "from_name": "label",
                "to_name": "text",
                "type": "labels",
                "value": {
                    "start": utf16_length(text[:start]),
                    "end": utf16_length(text[:end]),
                    "text": text[start:end],
                    "labels": [kind],
                },
            }
            for start, end, kind in spans
        ]
        tasks.append(
            {"id": number, "data": {"text": text}, "annotations": [{"result": result, "was_cancelled": False}]}
        )
    empty: list[object] = []
    tasks.append({"id": 99, "data": {"text": "Nothing here."}, "annotations": [{"result": empty}]})
    tasks.append({"id": 100, "data": {"text": "Not annotated."}, "annotations": empty})
    return json.dumps(tasks)


def kaggle_ner() -> str:
    rows: list[list[str]] = []
    for number in range(16):
        words = [(NAMES[number % 4], "NNP", "B-per"), ("visits", "VBZ", "O"), (CITIES[number % 3], "NNP", "B-geo")]
        words += [('"', "``", "O"), (".", ".", "O")]
        rows += [[f"Sentence: {number + 1}" if at == 0 else "", *word] for at, word in enumerate(words)]
    return table(["Sentence #", "Word", "POS", "Tag"], rows)


def conll() -> str:
    sentences = [
        f"# sent_id = {at}\n{NAMES[at % 4]}\tNNP\tPERSON\nvisits\tVBZ\tO\n{CITIES[at % 3]}\tNNP\tLOCATION\n"
        for at in range(16)
    ]
    return "-DOCSTART-\t-X-\tO\n\n" + "\n".join(sentences)


def questions() -> list[list[str]]:
    return [
        [str(at), f"where is {name} ?", f"{name} went to {city} by train, number {at}.", city]
        for at, (name, city) in enumerate((NAMES[at % 4], CITIES[at % 3]) for at in range(16))
    ]


def flat_answers(text: str, start: str, *, printed: bool = False, offset: int = 0) -> str:
    """Return questions whose answer occurs twice in its passage; the last place is meant."""
    rows: list[list[object]] = []
    for _, question, passage, answer in questions():
        passage = f"{answer} is far. {passage}"
        position = passage.rindex(answer) + offset
        rows.append([question, passage, *([str([answer]), str([position])] if printed else [answer, position])])
    return table(["question", "context", text, start], [*rows, ["why ?", "No answer.", "[]", "[]"]][: 16 + printed])


@dataclass(frozen=True)
class Case:
    """Files, what to expect of the recipe, and what the summary says."""

    files: dict[str, str | bytes]
    task: dict[str, Any]
    says: str = ""
    choices: Choices = field(default_factory=Choices)
    paths: tuple[str, ...] = ()


SENTIMENT = ["good", "bad"]
SETS = ["train", "dev", "test", "unused"]
CASES = {
    "semicolons, Windows-1252 and missing labels": Case(
        {
            "Bewertungen.csv": table(
                ["Nr", "Kommentar", "Stimmung"],
                [
                    [at, f"{text}, überraschend", "" if at == 3 else SENTIMENT[is_good]]
                    for at, (text, is_good) in enumerate(reviews())
                ],
                ";",
            ).encode("windows-1252")
        },
        {"text_columns": ("Kommentar",), "label_column": "Stimmung", "problem": "single_label"},
        "windows-1252 (byte 0xfc in line 2 is not UTF-8)",
    ),
    "UTF-16 text saved by Excel": Case(
        {"export.txt": table(["text", "label"], [[text, label] for text, label in reviews()], "\t").encode("utf-16")},
        {"text_columns": ("text",), "label_column": "label"},
        "UTF-16-LE with a byte order mark",
    ),
    "a byte order mark, an index, and authors who repeat": Case(
        {
            "posts.csv": "\ufeff"
            + table(
                ["", "author", "body", "topic", "date"],
                [
                    [at, f"user{at % 5}", text, ["sport", "music", "food"][at % 3], "2024-01-02"]
                    for at, (text, _) in enumerate(reviews())
                ],
            )
        },
        {"text_columns": ("body",), "label_column": "topic", "group_by": "author"},
        "UTF-8 with a byte order mark",
    ),
    "several labels in a cell, separated by bars": Case(
        {
            "issues.csv": table(
                ["title", "tags"],
                [
                    [text, ["bug|ui", "ui", "docs|bug", "bug", "docs", "docs|ui"][at % 6]]
                    for at, (text, _) in enumerate(reviews())
                ],
            )
        },
        {"text_columns": ("title",), "problem": "multi_label", "label_delimiter": "|"},
        "3 labels",
    ),
    "missing texts in JSON, and customers who repeat": Case(
        {
            "r.jsonl": lines(
                [
                    {"Kunden-Nr": 1000 + at % 7, "text": None if at == 5 else text, "label": SENTIMENT[is_good]}
                    for at, (text, is_good) in enumerate(reviews())
                ]
            )
        },
        {"group_by": "Kunden-Nr", "text_columns": ("text",)},
        "1 row has no text and will be skipped",
    ),
    "columns of 0 and 1": Case(
        {
            "toxic.csv": table(
                ["id", "comment_text", "toxic", "insult", "threat"],
                [
                    [f"{at:x}", text, int(is_good), (at % 3 == 0 and 1) or 0, int(at % 5 == 0)]
                    for at, (text, is_good) in enumerate(reviews())
                ],
            )
        },
        {"label_columns": ("toxic", "insult", "threat"), "problem": "multi_label", "text_columns": ("comment_text",)},
        "3 columns of 0 and 1",
    ),
    "printed lists of labels": Case(
        {
            "topics.csv": table(
                ["text", "labels"], [[text, str(["a", "b"][: 1 + at % 2])] for at, (text, _) in enumerate(reviews())]
            )
        },
        {"problem": "multi_label"},
    ),
    "numbers with a decimal comma": Case(
        {
            "noten.csv": table(
                ["Text", "Note"], [[text, f"{at % 7},{at % 10}"] for at, (text, _) in enumerate(reviews())], ";"
            )
        },
        {"problem": "regression", "label_column": "Note"},
        "numbers from 0",
        Choices(label=("Note",)),
    ),
    "a column that names the split": Case(
        {
            "all.jsonl": lines(
                [
                    {"review": text, "stars": at % 5 + 1, "split": ["train", "train", "dev", "test"][at % 4]}
                    for at, (text, _) in enumerate(reviews(40))
                ]
            )
        },
        {"split_column": "split", "text_columns": ("review",), "problem": "single_label"},
        "--problem regression predicts a number",
    ),
    "a folder of splits": Case(
        {
            f"data/{split}.tsv": "sentence\tlabel\n"
            + "".join(f"{text}\t{int(label)}\n" for text, label in reviews(number))
            for split, number in (("train", 24), ("dev", 8), ("test", 8))
        },
        {"text_columns": ("sentence",), "labels": ("0", "1")},
        "validation dev.tsv",
        paths=("data",),
    ),
    "pairs of texts": Case(
        {
            "nli.json": json.dumps(
                [
                    {"premise": text, "hypothesis": f"it was {at}", "label": ["entails", "contradicts"][at % 2]}
                    for at, (text, _) in enumerate(reviews())
                ]
            )
        },
        {"text_columns": ("premise", "hypothesis")},
    ),
    "Excel's separator line": Case(
        {"sep.csv": "sep=;\r\n" + table(["text", "label"], [[text, label] for text, label in reviews()], ";")},
        {"text_columns": ("text",)},
    ),
    "answers with a column for their start": Case(
        {"qa.csv": flat_answers("answer_text", "answer_start")},
        {"head": "question_answering", "label_column": "answer_text", "answer_start_column": "answer_start"},
        "questions",
    ),
    "answers flattened by pandas": Case(
        {"qa.csv": flat_answers("answers.text", "answers.answer_start", printed=True)},
        {"label_column": "answers.text", "answer_start_column": "answers.answer_start", "unanswerable": True},
        "1 of 17 questions have no answer",
    ),
    "answers named text with starts that count from 1": Case(
        {"qa.csv": flat_answers("text", "start", offset=1)},
        {"label_column": "text", "answer_start_column": "start"},
        "16 of 16 answers are not at their start (column 'start', in characters from 0)",
    ),
    "Kaggle's rows of words": Case(
        {"ner.csv": kaggle_ner().encode("windows-1252")},
        {
            "head": "token_classification",
            "sentence_column": "Sentence #",
            "text_columns": ("Word",),
            "label_column": "Tag",
        },
        "3 tags",
    ),
    "CoNLL with comments and tags without B-": Case(
        {"train.txt": conll()},
        {"head": "token_classification", "label_column": "tags"},
        "CoNLL",
    ),
    "tags that are numbers, -100 or null": Case(
        {"ner.jsonl": lines([{"tokens": ["Anna", "is", "here", "?"], "tags": [1, 0, -100, None]} for _ in range(16)])},
        {"head": "token_classification", "text_columns": ("tokens",), "label_column": "tags"},
        "2 tags: 1 (16), 0 (16)",
    ),
    "printed words and tags": Case(
        {
            "ner.csv": table(
                ["tokens", "ner_tags"],
                [[str([NAMES[at % 4], "is", "here"]), str(["B-PER", "O", "O"])] for at in range(16)],
            )
        },
        {"head": "token_classification", "text_columns": ("tokens",), "label_column": "ner_tags"},
    ),
    "words and tags separated by spaces": Case(
        {
            "ner.csv": table(
                ["sentence", "word_labels"], [[f"{NAMES[at % 4]} is here", "B-per,O,O"] for at in range(16)]
            )
        },
        {"head": "token_classification"},
        choices=Choices(text=("sentence",), label=("word_labels",), kind="tags"),
    ),
    "doccano": Case(
        {
            "all.jsonl": lines(
                [{"id": at, "text": text, "label": spans} for at, (text, spans) in enumerate(span_rows())]
            )
        },
        {"head": "token_classification", "span_column": "label", "text_columns": ("text",)},
        "32 spans: PER (16), LOC (16)",
    ),
    "doccano with relations": Case(
        {
            "all.jsonl": lines(
                [
                    {
                        "text": text,
                        "Comments": [],
                        "relations": [],
                        "entities": [
                            {"id": 1, "label": kind, "start_offset": start, "end_offset": end}
                            for start, end, kind in spans
                        ],
                    }
                    for text, spans in span_rows()
                ]
            )
        },
        {"span_column": "entities", "text_columns": ("text",)},
    ),
    "Label Studio": Case(
        {"project-1.json": label_studio()}, {"span_column": "label", "text_columns": ("text",)}, "1 row has no label"
    ),
    "Prodigy": Case(
        {
            "annotations.jsonl": lines(
                [
                    {
                        "text": text,
                        "_input_hash": 1,
                        "_task_hash": 2,
                        "answer": "reject" if at == 2 else "accept",
                        "tokens": [{"text": "a", "start": 0, "end": 1, "id": 0}],
                        "spans": [
                            {"start": start, "end": end, "token_start": 0, "token_end": 0, "label": kind}
                            for start, end, kind in spans
                        ],
                    }
                    for at, (text, spans) in enumerate(span_rows())
                ]
            )
        },
        {"span_column": "spans"},
        "1 row has no label",
    ),
    "spaCy": Case(
        {"train.jsonl": lines([[text, {"entities": spans}] for text, spans in span_rows()])},
        {"span_column": "entities", "text_columns": ("text",)},
    ),
    "GLiNER": Case(
        {
            "ner.json": json.dumps(
                [
                    {
                        "tokenized_text": [NAMES[at % 4], "visits", "New", "York"],
                        "ner": [[0, 0, "person"], [2, 3, "city"]],
                    }
                    for at in range(16)
                ]
            )
        },
        {"span_column": "ner", "text_columns": ("tokenized_text",)},
    ),
    "questions in CSV": Case(
        {"faq.csv": table(["id", "question", "context", "answer"], questions())},
        {
            "head": "question_answering",
            "text_columns": ("question", "context"),
            "label_column": "answer",
            "id_column": "id",
        },
    ),
    "choices in columns": Case(
        {
            "quiz.csv": table(
                ["question", "A", "B", "C", "answer"],
                [[f"which noun is number {at} ?", *NOUNS[:3], "ABC"[at % 3]] for at in range(16)],
            )
        },
        {"head": "multiple_choice", "choice_columns": ("A", "B", "C"), "label_column": "answer"},
    ),
}


def write_files(case: Case) -> list[Path]:
    for name, content in case.files.items():
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [Path(name) for name in case.paths or case.files]


def run_init(case: Case, encoder: Path) -> InitResult:
    return init(write_files(case), case.choices, model=str(encoder))


@pytest.mark.parametrize("name", CASES)
def test_recipe_of_messy_files_is_ready_for_training(name: str, encoder: Path) -> None:
    case = CASES[name]
    result = run_init(case, encoder)
    text = "\n".join(result.lines)
    assert case.says in text
    assert all(len(line) < 300 for line in text.splitlines())
    assert len(text.splitlines()) <= 14
    recipe = load_recipe("recipe.yaml")
    task = recipe_task(recipe)
    assert {key: getattr(task, key) for key in case.task} == case.task
    if task.label_columns:
        assert "label_column:" not in Path("recipe.yaml").read_text()
    finetune(recipe, Path("run"), RunOptions(dry_run=True, console=QUIET))


@pytest.mark.parametrize(
    "name",
    [
        "semicolons, Windows-1252 and missing labels",
        "columns of 0 and 1",
        "numbers with a decimal comma",
        "a column that names the split",
        "Kaggle's rows of words",
        "Label Studio",
        "questions in CSV",
        "answers with a column for their start",
    ],
)
def test_training_and_prediction_follow_without_an_edit(name: str, encoder: Path) -> None:
    case = CASES[name]
    (path,) = write_files(case)
    init([path], case.choices, model=str(encoder))
    words = ["training.max_steps=2", "training.global_batch_size=8"]
    finetune(load_recipe("recipe.yaml", words), Path("run"), RunOptions(console=QUIET))
    number = predict("run", PredictionInput(path=str(path)), "out.jsonl", console=QUIET)
    answers = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    expected = {
        "Kaggle's rows of words": 16,
        "Label Studio": 18,
        "questions in CSV": 16,
        "answers with a column for their start": 16,
    }.get(name, 24)
    assert number == len(answers) == (40 if "split" in name else expected)
    if "Windows" in name:
        assert answers[0]["Kommentar"].endswith("überraschend")
    if name == "Kaggle's rows of words":
        assert answers[3]["words"][0] == "Émile"
        assert answers[1]["words"] == ["Bruno", "visits", "Paris", '"', "."]
    for answer in answers:
        for entity in answer.get("entities") or ():
            assert answer["text"][entity["start"] : entity["end"]] == entity["text"]


def test_recipe_is_never_replaced(encoder: Path) -> None:
    case = CASES["pairs of texts"]
    run_init(case, encoder)
    Path("recipe.yaml").write_text("mine")
    with pytest.raises(UsageError, match=r"recipe\.yaml already exists; choose another --output"):
        run_init(case, encoder)
    assert Path("recipe.yaml").read_text() == "mine"


@pytest.mark.parametrize(("num_rows", "epochs"), [(10, 20), (1000, 10), (10_000, 3)])
def test_few_rows_are_trained_on_for_more_epochs(num_rows: int, epochs: int) -> None:
    assert choose_epochs(num_rows) == epochs


def test_labels_of_a_parquet_file_have_the_names_that_it_declares(encoder: Path) -> None:
    texts, labels = zip(*reviews(), strict=True)
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    Dataset.from_dict({"text": texts, "label": [*map(int, labels)]}, features=features).to_parquet("reviews.parquet")
    init([Path("reviews.parquet")], Choices(), model=str(encoder))
    recipe = load_recipe("recipe.yaml")
    assert recipe_task(recipe).labels == ("bad", "good")
    finetune(recipe, Path("run"), RunOptions(dry_run=True, console=QUIET))


def test_recipe_in_another_folder_finds_the_files(encoder: Path) -> None:
    files = write_files(CASES["pairs of texts"])
    init(files, Choices(), model=str(encoder), output=Path("mine/nli.yaml"))
    assert "train: ../nli.json" in Path("mine/nli.yaml").read_text()
    finetune(load_recipe("mine/nli.yaml"), Path("run"), RunOptions(dry_run=True, console=QUIET))


def test_classifier_for_other_labels_is_replaced(encoder: Path) -> None:
    case = CASES["pairs of texts"]
    run_init(case, encoder)
    finetune(load_recipe("recipe.yaml", ["training.max_steps=1"]), Path("run"), RunOptions(console=QUIET))
    init([Path("nli.json")], Choices(), model="run", output=Path("again.yaml"))
    assert not load_recipe("again.yaml").model.new_head
    Path("other.csv").write_text(table(["text", "label"], [[text, at % 3] for at, (text, _) in enumerate(reviews())]))
    init([Path("other.csv")], Choices(), model="run", output=Path("other.yaml"))
    recipe = load_recipe("other.yaml")
    assert recipe.model.new_head
    finetune(recipe, Path("other"), RunOptions(dry_run=True, console=QUIET))


@pytest.mark.parametrize(
    ("content", "choices", "message"),
    [
        (
            "text,label\na long text,b\n",
            Choices(text=("txt",)),
            r"found no column 'txt' \(--text\), .* Did you mean text\?",
        ),
        ("a,b\n1,2\n3,4\n", Choices(), "found no column of texts .* name it with --text"),
        (
            "text,date\nit was a fine day,2024-01-02\nit was bad,2024-01-03\n",
            Choices(),
            "found no column of labels: column 'date' has IDs, links or dates, .* --label",
        ),
        ("text,label\na,b\n", Choices(kind="tag"), r"found --problem 'tag', expected one of .* Did you mean tags\?"),
        ("text\na day\n", Choices(), "found only columns of texts, expected one of labels"),
        ("", Choices(), "is empty, expected rows with a header line"),
        ("text,label\n", Choices(), "found no rows after the header"),
        ("Привет мир;ярлык\n".encode("windows-1251"), Choices(), "not a Western encoding; set --encoding"),
        ("good,a fine day\nbad,it was awful\ngood,nice\ngood,no\n", Choices(), "found 'good' as the name of a column"),
        (
            "l,it was a fine day and we all had fun\nx,no\n",
            Choices(),
            "looks like a value; .* no header, name its 2 columns, such as --columns text,label",
        ),
        (
            "question,A,B,answer\n" + "what is it now ?,x,y,1\nwhat is that ?,x,y,2\n",
            Choices(),
            "numbers the choices from 1 to 2",
        ),
        (
            "question,A,B,answer\n" + "what is it now ?,x,y,x\nwhat is that ?,v,w,w\n",
            Choices(),
            "column 'answer' has the text of a choice, 'x', expected its number, from 0, or its letter",
        ),
        (
            "# saved by me,in May\ntext,label\nit was a fine day,good\nit was bad,bad\n",
            Choices(),
            r"the first row, \['text', 'label'\], looks like the header; remove what is above it",
        ),
        ("My answers\ntext,label\na day,b\n", Choices(), "expected 1 as in the header; if line 1 is not the header"),
        (
            table(["text", "price"], [[text, f"${at}"] for at, (text, _) in enumerate(reviews(44))]),
            Choices(label=("price",)),
            r"column 'price' has numbers, but also '\$0' \(1×\), expected numbers such as 1234.5, or an empty cell",
        ),
        (
            table(["text", "score"], [[text, at / 7 if at != 5 else "NA"] for at, (text, _) in enumerate(reviews(44))]),
            Choices(),
            r"column 'score' has numbers, but also 'NA' \(1×\)",
        ),
        (
            table(["text", "label", "set"], [[text, at % 2, SETS[at % 4]] for at, (text, _) in enumerate(reviews())]),
            Choices(),
            r"'set' seems to name the split .* values \['train', 'dev', 'test', 'unused'\], .* --split none",
        ),
        (
            table(["text", "label", "set"], [[text, at % 2, SETS[at % 4]] for at, (text, _) in enumerate(reviews())])
            + "a day,1,Train\r\n",
            Choices(split="set"),
            "found 'train' and 'Train' in column 'set', which both name the train split",
        ),
        (
            table(
                ["question", "context", "answer"],
                [[asked, passage, "Rome" if at == "3" else answer] for at, asked, passage, answer in questions()],
            ),
            Choices(),
            r"found answers that are not in their passage, such as 'Rome' \(1 in all, column 'context'\)",
        ),
    ],
)
def test_what_the_data_leave_open_names_the_option(content: str | bytes, choices: Choices, message: str) -> None:
    Path("data.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((UsageError, DataError), match=message) as error:
        init([Path("data.csv")], choices)
    assert len(str(error.value)) < 300
    assert not Path("recipe.yaml").exists()


def test_content_of_a_file_is_quoted_briefly(encoder: Path) -> None:
    secret = "the patient said " * 20
    rows = [[secret + str(at), f"{secret}{at % 2}"] for at in range(8)]
    Path("data.csv").write_text(table(["text", "label"], rows))
    result = init([Path("data.csv")], Choices(), model=str(encoder))
    assert all(line.count("patient") < 6 for line in result.lines)


def test_command_prints_the_summary_and_the_next_command(encoder: Path) -> None:
    write_files(CASES["pairs of texts"])
    result = CliRunner().invoke(app, ["init", "nli.json", "--model", str(encoder), "--output", "nli.yaml"])
    assert result.exit_code == 0, result.output
    assert "bertcli check nli.yaml, then bertcli finetune nli.yaml" in result.output
    again = CliRunner().invoke(app, ["init", "nli.json", "--model", str(encoder), "--output", "b.yaml", "--json"])
    assert json.loads(again.output)["recipe"] == "b.yaml"


@pytest.mark.parametrize("command", ["finetune", "eval", "predict"])
def test_data_in_place_of_a_recipe_or_model_names_init(command: str) -> None:
    Path("reviews.csv").write_text("text,label\n" + "secret,good\n" * 100)
    words = ["--input", "x"] if command == "predict" else []
    Path("x").write_text("a\n")
    result = CliRunner().invoke(app, [command, "reviews.csv", *words])
    assert result.exit_code != 0
    assert "bertcli init reviews.csv" in result.output
    assert "secret" not in result.output
    assert len(result.output.splitlines()) == 1


REVIEWS = "text,label\n" + "".join(f"a long text {at} of words,{'ab'[at % 2]}\n" for at in range(8))
STARS = REVIEWS.replace("text,label", "text,stars", 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"one.csv": REVIEWS, "two.csv": STARS},
            r"two\.csv has the column \['stars'\], but one\.csv has the column \['label'\]; use the same columns",
        ),
        (
            {"one.csv": REVIEWS, "two.jsonl": lines([{"text": "a day", "label": "a", "by": "me"}])},
            r"two\.jsonl has the column \['by'\], but one\.csv has no others",
        ),
        (
            {"one.csv": REVIEWS, "two.jsonl": lines([{"text": "a day", "label": ["a", "b"]}])},
            r"two\.jsonl and one\.csv differ in column 'label': only one of them has lists",
        ),
        (
            {"train.csv": REVIEWS, "dev.csv": STARS},
            r"dev\.csv \(validation\) has no column 'label', .* it has \['stars'\] instead",
        ),
    ],
)
def test_files_with_different_columns_are_refused(files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        Path(name).write_text(content)
    with pytest.raises(UsageError, match=message):
        init([*map(Path, files)], Choices())
    assert not Path("recipe.yaml").exists()


def test_files_share_the_named_columns_and_a_test_file_needs_no_labels(encoder: Path) -> None:
    Path("train_1.csv").write_text(REVIEWS)
    Path("train_2.csv").write_text(REVIEWS.replace("text,label", "by,text,label", 1).replace("\na ", "\nme,a "))
    Path("test.csv").write_text("text\na day\n")
    paths = [Path("train_1.csv"), Path("train_2.csv"), Path("test.csv")]
    init(paths, Choices(text=("text",), label=("label",)), model=str(encoder))
    finetune(load_recipe("recipe.yaml"), Path("run"), RunOptions(dry_run=True, console=QUIET))


@pytest.mark.parametrize(
    ("content", "choices", "message"),
    [
        (REVIEWS, Choices(kind="regression"), r"column 'label' has 'a', expected numbers for --problem regression"),
        (
            lines([{"text": f"a long text {at}", "labels": ["a", "b"]} for at in range(4)]),
            Choices(label=("labels",), kind="single_label"),
            r"column 'labels' has \['a', 'b'\], expected one value per row for --problem single_label",
        ),
        (
            table(["text", "A", "B"], [[f"a long text {at}", "ab"[at % 2], at % 2] for at in range(8)]),
            Choices(label=("A", "B")),
            r"column 'A' has 'a', expected 0 or 1, as --label names several columns",
        ),
        (
            table(["text", "A", "B"], [[f"a long text {at}", at % 2, at % 2] for at in range(8)]),
            Choices(label=("A", "B"), kind="single_label"),
            r"found 2 columns of labels and --problem single_label, expected one",
        ),
    ],
)
def test_options_that_contradict_the_labels_are_refused(content: str, choices: Choices, message: str) -> None:
    path = Path("data.jsonl" if content.startswith("{") else "data.csv")
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        init([path], choices)
    assert not Path("recipe.yaml").exists()


@pytest.mark.parametrize(
    ("path", "output", "message"),
    [
        ("nofile.csv", "recipe.yaml", "found no file or folder nofile.csv"),
        ("data.csv", "recipe.yaml", "recipe.yaml already exists"),
        ("data.csv", "folder", "--output folder is a folder, expected the name of a file, such as folder/recipe.yaml"),
        ("recipe.yaml", "new.yaml", "recipe.yaml is a recipe, not data; train with `bertcli finetune recipe.yaml`"),
    ],
)
def test_paths_of_inputs_are_checked_before_that_of_the_recipe(path: str, output: str, message: str) -> None:
    Path("data.csv").write_text(REVIEWS)
    Path("recipe.yaml").write_text("task: {}\n")
    Path("folder").mkdir()
    with pytest.raises(UsageError, match=re.escape(message)):
        init([Path(path)], Choices(), output=Path(output))


def test_empty_json_lines_need_rows_but_no_header() -> None:
    Path("empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty\.jsonl is empty, expected rows$"):
        init([Path("empty.jsonl")], Choices())


@pytest.mark.parametrize(
    ("header", "labels"),
    [
        (["text", "labels"], [["a;b"], [""], ["b"], ["a"]]),
        (["text", "a", "b"], [[1, 1], [0, 0], [0, 1], [1, 0]]),
    ],
)
def test_rows_without_any_label_are_counted(header: list[str], labels: list[list[object]], encoder: Path) -> None:
    Path("data.csv").write_text(table(header, [[f"a long text {at}", *labels[at % 4]] for at in range(16)]))
    result = init([Path("data.csv")], Choices(kind="multi_label"), model=str(encoder))
    assert result.findings["labels"].endswith("a (8), b (8); 4 rows without any label")


DOUBTFUL = {
    "numbers with a comma before three digits": (
        table(["text", "price"], [[text, f"1,{at + 100}"] for at, (text, _) in enumerate(reviews())]),
        "the comma in numbers such as '1,100' is read as a decimal comma; if it separates thousands, remove it",
    ),
    "the label -1": (
        table(["text", "label"], [[text, at % 3 - 1] for at, (text, _) in enumerate(reviews())]),
        "-1 is taken as a label; if it marks rows without one, remove it from task.labels",
    ),
    "choices that may count from 1": (
        table(["question", "A", "B", "C", "answer"], [[f"{at} is ?", "x", "y", "z", 1 + at % 2] for at in range(24)]),
        "no row of column 'answer' has 0, the number of the first choice",
    ),
    "spans whose end is included": (
        lines([{"text": text, "label": [[*span[:1], span[1] - 1, span[2]] for span in spans]}
               for text, spans in span_rows()]),
        "32 of 32 spans begin or end inside a word",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBTFUL)
def test_what_may_be_misread_is_a_doubt(name: str) -> None:
    content, doubt = DOUBTFUL[name]
    data = Path("data.jsonl" if content.startswith("{") else "data.csv")
    data.write_text(content)
    assert doubt in " ".join(init([data], Choices()).doubts)
    if name == "the label -1":
        assert recipe_task(load_recipe("recipe.yaml")).labels == ("-1", "0", "1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"data": [{"text": "a day", "label": 1}]}), r"only one row, an object with the keys \['data'\]"),
        (json.dumps([{"text": {"en": "a day"}, "label": at} for at in "ab"]), "column 'text' has {'en': 'a day'}"),
        (json.dumps(2 * [{"text": "a day", "label": [["0", "X"]]}]), r"column 'label' has \[\['0', 'X'\]\]"),
        (json.dumps([{"question": "a ?", "choices": [*text], "answer": 0} for text in ("xy", "xyz")]),
         "has 2 choices in the first row, but 3 in another"),
    ],
)  # fmt: skip
def test_nested_json_is_not_taken_for_labels(content: str, message: str) -> None:
    Path("data.json").write_text(content)
    with pytest.raises((UsageError, DataError), match=message):
        init([Path("data.json")], Choices())


def test_a_file_that_is_named_twice_is_read_once() -> None:
    Path("data").mkdir()
    Path("data/all.csv").write_text(table(["text", "label"], reviews()))
    Path("link.csv").symlink_to("data/all.csv")
    init([Path("data"), Path("data/all.csv"), Path("link.csv")], Choices())
    files = recipe_task(load_recipe("recipe.yaml")).files
    assert files is not None
    assert len(files.train) == 1


def test_groups_and_rows_left_out_are_described() -> None:
    rows = [[text, at % 2, f"user{at % 5}"] for at, (text, _) in enumerate(reviews())]
    Path("a.csv").write_text(table(["text", "label", "author"], rows))
    splits = init([Path("a.csv")], Choices(), output=Path("a.yaml")).findings["splits"]
    assert splits == "10% of the values of column 'author', with all their rows, are held out for validation"
    rows = [[text, at % 2, SETS[at % 4]] for at, (text, _) in enumerate(reviews())]
    Path("b.csv").write_text(table(["text", "label", "set"], rows))
    splits = init([Path("b.csv")], Choices(split="set"), output=Path("b.yaml")).findings["splits"]
    assert splits == "column 'set': train (6), dev (6), test (6); 6 rows without one of these left out"
    Path("ner.csv").write_text(kaggle_ner())
    init([Path("ner.csv")], Choices(), output=Path("ner.yaml"))
    assert recipe_task(load_recipe("ner.yaml")).group_by is None  # words repeat


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("reviews.csv", "reviews"),
        ("My reviews (2).csv", "My-reviews-2"),
        ("news/train.csv", "news"),
        ("news/sport-train.csv.gz", "news"),
        ("news", "news"),
    ],
)
def test_recipe_and_task_are_named_after_the_data(path: str, name: str) -> None:
    Path("news").mkdir()
    file = Path("news/all.csv" if path == "news" else path)
    content = table(["text", "label"], reviews()).encode()
    file.write_bytes(gzip.compress(content) if path.endswith(".gz") else content)
    result = CliRunner().invoke(app, ["init", path])
    assert f"wrote     {name}.yaml\n" in result.output
    assert recipe_task(load_recipe(f"{name}.yaml")).name == name


@pytest.mark.parametrize(("name", "delimiter"), [("sms", "\t"), ("sms.tsv", "\t"), ("sms.csv", ","), ("sms.txt", ";")])
@pytest.mark.parametrize("is_quoted", [False, True])
def test_files_without_a_header_are_read_with_the_given_names(name: str, delimiter: str, is_quoted: bool) -> None:
    rows = [[SENTIMENT[is_good], text.replace(",", '"' if is_quoted else " ")] for text, is_good in reviews()]
    if name.endswith(".tsv"):  # TSV is not quoted
        rows = [[label, text.replace('"', " ")] for label, text in rows]
    header, *others = rows
    Path(name).write_text(table(header, others, delimiter))
    with pytest.raises(UsageError, match="--columns text,label"):
        init([Path(name)], Choices())
    init([Path(name)], Choices(), column_names="label, text")
    recipe = load_recipe("recipe.yaml")
    task = recipe_task(recipe)
    assert (task.text_columns, task.label_column, task.holds_out_rows) == (("text",), "label", True)
    loaded = load_training_rows(task)
    assert [[*row] for row in zip(loaded["label"], loaded["text"], strict=True)] == rows


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        (
            "label,text\ngood,a fine day\nbad,it was bad\n",
            "label,text",
            "data.csv:1: this line has the names of the col",
        ),
        (
            "good,a fine day\nbad,it was bad\n",
            "label,text,id",
            "data.csv:1: found 2 values, .* expected 3 for the given",
        ),
        ("good,a fine day\nbad,it was bad\n", "a,a", "found --columns 'a,a', expected a different name for each"),
        (
            '{"text": "a day", "label": 1}\n',
            "label,text",
            "--columns names the columns of CSV and TSV files without a he",
        ),
    ],
)
def test_column_names_that_do_not_fit_are_refused(content: str, columns: str, message: str) -> None:
    Path("data.csv").write_text(content)
    with pytest.raises((UsageError, DataError), match=message):
        init([Path("data.csv")], Choices(), column_names=columns)


def test_folders_of_texts_for_each_label_are_refused_with_a_command_that_converts_them(encoder: Path) -> None:
    for split, number in (("train", 24), ("test", 8)):
        for at, (text, is_good) in enumerate(reviews(number)):
            path = Path("it's IMDb", split, "pos" if is_good else "neg", f"{at}_7.txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\nand über.", "utf-8")
        path.parent.with_name("urls_pos.txt").write_text("http://…", "utf-8")
    with pytest.raises(
        UsageError, match=r"for each of \['neg', 'pos'\] in it's IMDb/train, .*\n.*\n.*\['test'\] in"
    ) as caught:
        init([Path("it's IMDb")], Choices(), model=str(encoder))
    command = str(caught.value).splitlines()[1]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    assert subprocess.run(command.replace("python", sys.executable, 1), shell=True, capture_output=True).returncode == 1
    init([Path("train.csv")], Choices(), model=str(encoder))
    task = recipe_task(load_recipe("recipe.yaml"))
    rows = load_training_rows(task, None)
    assert (len(rows), task.labels) == (24, ("neg", "pos"))
    assert (rows[23]["text"], rows[23]["label"]) == (f"{reviews()[9][0]}\nand über.", "pos")  # 9_7.txt
