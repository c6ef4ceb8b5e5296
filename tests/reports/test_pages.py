"""Report pages: complete for each head, small for many rows, and texts stay escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bertcli.errors import UsageError
from bertcli.reports import png
from bertcli.reports.comparison import read_runs, write_page, write_plots, write_run_pages
from bertcli.runs.folder import RunFolder

HOSTILE = [
    "<script>alert(1)</script>",
    "</script></style></title><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    '"><a href="javascript:alert(1)" onclick=\'x\'>&amp;',
    "\x1b[31mred\x1b[0m \x9b2J",
    "\u202egnp.exe \u2067rtl\u2069 \u05d0\u05d1",
    "zero\u200bwidth\u200d\ufeff",
    "ends in \ud800",
]
MARKUP = {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "dl", "div", "dt", "dd", "figure"}
MARKUP |= {"figcaption", "span", "svg", "g", "line", "rect", "path", "circle", "text", "ul", "ol", "li", "bdi", "b"}
MARKUP |= {"mark", "table", "thead", "tbody", "tr", "td", "th", "details", "summary", "pre"}


class Reader(HTMLParser):
    """Tags, attributes and text as a browser sees them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        self.words += " " if tag in ("td", "th") else ""

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Write the folder of a finished run with given predictions."""

    def write(
        predictions: list[dict[str, Any]], name: str = "run", head: str = "text_classification", **rest: Any
    ) -> Path:
        folder = RunFolder(tmp_path / name)
        folder.predictions.mkdir(parents=True)
        folder.recipe.write_text("task: glue/sst2\n")
        folder.environment.write_text(json.dumps({"command": HOSTILE[0], "gpus": [], "packages": {"torch": "2"}}))
        results = {
            "run": name, "task": "a/task", "head": head, "model": None, "size": "tiny", "seed": 1, "best_by": "f1",
            "best_step": 20, "total_steps": 30, "num_train_examples": 50, "num_parameters": 9, "train_seconds": 6.0,
            "device": "cpu", "precision": "fp32", "metrics": {"validation": {"f1": 0.5, "loss": 1.0}},
        }  # fmt: skip
        folder.results.write_text(json.dumps(results | rest))
        train = [{"step": step, "train/loss": 1 / step, "learning_rate": 1e-3} for step in range(1, 31)]
        evaluations = [
            {"step": step, "eval/validation/f1": step / 40, "eval/validation/loss": 1.0} for step in (10, 20)
        ]
        for path, records in (
            (folder.train_history, train),
            (folder.eval_history, evaluations),
            (folder.predictions / "validation.jsonl", predictions),
        ):
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return folder.path

    return write


def prediction(gold: Any, predicted: Any, texts: dict[str, Any], row: int = 1, **rest: Any) -> dict[str, Any]:
    line = {"row": row, "tokens": 5 + row, "texts": texts, "gold": gold, "predicted": predicted}
    return line | {"right": gold == predicted, "loss": float(gold != predicted)} | rest


def labeled(labels: list[str]) -> Iterator[dict[str, Any]]:
    for row, gold in enumerate(labels, start=1):
        yield prediction(
            gold, labels[row // 2], {"text": gold}, row, confidence=0.7, probabilities={gold: 0.7, "other": 0.3}
        )


def page_of(run: Path) -> str:
    return write_run_pages(str(run)).read_text("utf-8")


@pytest.mark.parametrize("make", [
    lambda text: ("text_classification", list(labeled([text, "calm"]))),
    lambda text: ("text_classification", [prediction(1.0, 4.5, {text: text}, right=False)]),
    lambda text: ("text_classification", [prediction([text], [], {"text": text}, probabilities={text: 0.1})]),
    lambda text: ("multiple_choice", [prediction("0", "1", {"text": text, "choices": [text, text]}, confidence=0.9,
                                               probabilities={"0": 0.1, "1": 0.9})]),
    lambda text: ("token_classification", [prediction(["B-" + text], ["O"], {"tokens": [text]})]),
    lambda text: ("question_answering", [prediction([text], text[3:], {"question": text, "context": f"<b>{text}</b>"},
                                                  gold_start=3, start=6, end=3 + len(text), confidence=0.2)]),
])  # fmt: skip
def test_page_escapes_hostile_text(write_run: Callable[..., Path], make: Callable[[str], Any]) -> None:
    for index, text in enumerate(HOSTILE):
        head, predictions = make(text)
        run = write_run(predictions, f"run-{index}", head, task=text, model=text)
        page = write_run_pages(str(run)).read_bytes()
        assert len(page) < 200_000
        read = Reader(page.decode("utf-8"))
        assert read.tags <= MARKUP
        assert not {name for name in read.attributes if name.startswith("on")} | {"src", "href"} & read.attributes
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page.decode("utf-8"))
        if text.isascii() and text.isprintable():
            assert text in read.words


def test_page_truncates_long_texts(write_run: Callable[..., Path]) -> None:
    text = "<!-- " + "long " * 1_000_000
    run = write_run(list(labeled([text, "calm"])), task=text, model=text)
    assert len(page_of(run)) < 60_000


def test_page_has_no_external_resources_and_a_strict_security_policy(write_run: Callable[..., Path]) -> None:
    page = page_of(write_run(list(labeled(["a", "b"]))))
    assert "http:" not in page
    assert "https:" not in page
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy[1] == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_page_is_deterministic(write_run: Callable[..., Path]) -> None:
    run = write_run(list(labeled(["a", "b", "c"])))
    assert page_of(run) == page_of(run)


def test_page_of_many_rows_and_labels_is_small_and_reports_omissions(write_run: Callable[..., Path]) -> None:
    predictions = list(labeled([f"label {index}" for index in range(5000)]))
    for index, row in enumerate(predictions):
        row["row"] = 1 + 20 * index
    page = page_of(write_run(predictions))
    assert len(page) < 100_000
    words = Reader(page).words
    assert "one in 20 rows (5,000 rows)" in words
    assert "4,985 labels are omitted" in words
    assert "4,960 labels with higher F1 are omitted" in words


def test_page_marks_answers_in_the_passage(write_run: Callable[..., Path]) -> None:
    passage = "once " * 200 + "Ada wrote it in London ." + " then" * 200
    start = passage.index("Ada")
    row = prediction(["Ada"], "Ada wrote", {"question": "who ?", "context": passage}, gold_start=start)
    page = page_of(write_run([row | {"start": start, "end": start + 9, "confidence": 0.5}], head="question_answering"))
    assert "…once" in page or "…" in page
    assert '<mark class="both">Ada</mark><mark class="extra"> wrote</mark> it in London' in page
    assert passage not in page


def test_page_marks_words_by_gold_and_predicted_tags(write_run: Callable[..., Path]) -> None:
    tags = ["B-PER", "O", "B-LOC", "B-LOC"], ["B-PER", "B-ORG", "O", "B-ORG"]
    page = page_of(
        write_run([prediction(*tags, {"tokens": ["ada", "ran", "rome", "oslo"]})], head="token_classification")
    )
    marks = (("both", "ada"), ("extra", "ran"), ("missed", "rome"), ("confused", "oslo"))
    for mark, word in marks:
        assert f'<mark class="{mark}">{word}</mark>' in page


def test_page_of_a_run_without_predictions(write_run: Callable[..., Path]) -> None:
    run = write_run([], task=None, objective="masked_lm", unigram_cross_entropy=4.5)
    page = page_of(run)
    assert "unigram cross-entropy" in page
    assert "Worst mistakes" not in page


def test_page_compares_several_runs(write_run: Callable[..., Path]) -> None:
    names = [str(write_run([], f"{name}-run")) for name in ("<one>", "two")]
    Path(names[1], "recipe.yaml").write_text("task: glue/sst2\ntraining: {learning_rate: 7e-5}\n")
    write_page(names, Path("compared.html"))
    read = Reader(Path("compared.html").read_text("utf-8"))
    assert read.tags <= MARKUP
    assert "training.learning_rate" in read.words
    assert "7e-05" in read.words
    assert names[0] in read.words


def test_each_seed_has_a_page_and_all_have_a_comparison(write_run: Callable[..., Path]) -> None:
    for seed in (1, 2):
        write_run(list(labeled(["a", "b"])), f"seeds/seed-{seed}", seed=seed)
    page = page_of(Path("seeds"))
    assert "2 seeds" in page
    words = " ".join(Reader(page).words.split())
    assert "seed 2 scratch 50 0.5000" in words
    assert "all scratch 50 0.5000 ± 0.0000" in words
    assert all("Worst mistakes" in Path(f"seeds/seed-{seed}/report.html").read_text() for seed in (1, 2))


def test_read_runs_reports_a_corrupt_file(write_run: Callable[..., Path]) -> None:
    run = write_run([])
    (run / "results.json").write_text("{")
    with pytest.raises(UsageError, match="cannot read the run in"):
        read_runs([str(run)])


def test_plots_are_saved_to_a_new_folder(write_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(list(labeled(["a", "$b$"])))
    monkeypatch.setattr(png, "DOTS_PER_INCH", 20)
    write_plots(read_runs([str(run)]), Path("plots"))
    names = {"loss", "scores", "learning-rate", "calibration", "lengths", "confusion"}
    assert {path.name for path in Path("plots").iterdir()} == {f"{name}.png" for name in names}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in Path("plots").iterdir())
    with pytest.raises(UsageError, match="not an empty folder"):
        write_plots(read_runs([str(run)]), Path("plots"))
