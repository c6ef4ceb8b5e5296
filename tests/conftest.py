"""Tiny but real models, data and recipes that tests share; no network."""

from __future__ import annotations

import csv
import gc
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import typer.testing
from transformers import PreTrainedTokenizerBase

from bertcli.console import Console
from bertcli.metrics.answers import collect_answers
from bertcli.metrics.scores import compute_scores
from bertcli.recipe.schema import Recipe

gc.disable()  # until the tests are collected
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")  # threads slow tiny matrices down

REPOSITORY = Path(__file__).parent.parent
MIRROR = REPOSITORY.parent / "shared" / "mirror"
TEXTS = ["a fine film", "a dull film", "what a lovely day", "the soup was awful", "i love the harbour", "bad train"]
QUIET = Console(quiet=True)


def allow_missing(weights: object) -> None:
    """Accept a newly initialized head, as training does: for `load_model(on_missing=…)`."""


def score_predictions(
    names: Iterable[str], kind: str, predictions: Any, references: Any, *options: Any, **named: Any
) -> dict[str, float]:
    """The scores of predictions of a kind, by name; the options are those of `collect_answers`."""
    return compute_scores(collect_answers(names, kind, predictions, references, *options, **named))


def _overwrite_start(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"}" * min(9, path.stat().st_size))


CORRUPTIONS: dict[str, Callable[[Path], object]] = {  # ways to damage a file
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 2),
    "missing": lambda path: path.unlink(),
    "corrupt": _overwrite_start,
}


def pytest_collection_finish() -> None:
    """Exempt libraries and tests from garbage collection, which would scan a million objects again and again.

    It runs less often, too: Python's defaults suit programs that create fewer objects.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _in_fp32() -> Iterator[None]:
    """`precision: auto` means fp32 on every test machine, even if its CPU supports bf16."""
    from bertcli.training import devices

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "cpu_computes_bf16", lambda: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _without_fsync() -> Iterator[None]:
    """No test survives a power loss, and waiting for a disk takes as long as many tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _command_built_once() -> Iterator[None]:
    """`CliRunner` would build all commands from their functions each time it calls one of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(typer.main.get_command))
        yield


@pytest.fixture(autouse=True)
def _fresh_accelerator_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """An `Accelerator` without an explicit precision would inherit that of an earlier test."""
    from accelerate.state import AcceleratorState

    monkeypatch.setattr(AcceleratorState, "_shared_state", {})


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in its own working folder, without a mirror."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BERTCLI_MIRROR", raising=False)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """Write rows to a CSV or TSV file (by its suffix) in the test's folder."""

    def write(name: str, header: list[str], rows: list[list[object]]) -> Path:
        path = tmp_path / name
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writerow(header)
            writer.writerows(rows)
        return path

    return write


@pytest.fixture
def reviews(write_csv: Callable[..., Path]) -> Path:
    """A CSV file of 40 labeled texts."""
    rows = [[f"the {noun} was {word}", label] for noun in ("film", "soup", "train", "day", "book") for word, label in
            (("fine", "positive"), ("lovely", "positive"), ("good", "positive"), ("superb", "positive"),
             ("bad", "negative"), ("awful", "negative"), ("dull", "negative"), ("vile", "negative"))]  # fmt: skip
    return write_csv("reviews.csv", ["text", "label"], rows)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved BERT encoder (2 layers, hidden size 16) with its tokenizer and without a classifier."""
    import torch
    from transformers import BertConfig, BertModel

    from bertcli.models.from_pretrained import save_model
    from bertcli.models.tokenizer_training import train_tokenizer

    tokenizer = train_tokenizer(lambda: TEXTS, 128)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.2,  # with BERT's 0.02, such a small model does not learn
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    save_model(BertModel(config), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def roberta_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer like RoBERTa's: a space belongs to the following word, no token types."""
    from .model_families import build_roberta_tokenizer

    return build_roberta_tokenizer()


@pytest.fixture
def xlnet_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer like XLNet's: [CLS] is last, has a token type of its own, and padding is on the left."""
    from .model_families import build_xlnet_tokenizer

    return build_xlnet_tokenizer()


@pytest.fixture
def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer like GPT-2's: it adds no special tokens, and the end of text is its only one."""
    from .model_families import build_gpt2_tokenizer

    return build_gpt2_tokenizer()


@pytest.fixture(params=["wordpiece", "byte-level"])
def tokenizer(
    request: pytest.FixtureRequest, encoder: Path, roberta_tokenizer: PreTrainedTokenizerBase
) -> PreTrainedTokenizerBase:
    """A tokenizer of each kind."""
    from bertcli.models.from_pretrained import ModelSource

    return ModelSource(str(encoder)).load_tokenizer() if request.param == "wordpiece" else roberta_tokenizer


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe file in the test's folder."""

    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    return write


@pytest.fixture
def recipe_of(encoder: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Recipe]:
    """Build the recipe of a run of a few steps on the reviews, with overrides; the cache is in the test's folder."""
    from bertcli.recipe.load import load_recipe

    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path / "cache"))

    def build(*overrides: str) -> Recipe:
        path = Path("small.yaml")
        path.write_text(
            f"task: {{files: {{train: {reviews}}}, text_columns: [text], labels: [negative, positive]}}\n"
            f"model: {{name: {encoder}}}\ndata: {{max_length: 16}}\n"
            "training: {epochs: 2, global_batch_size: 7, learning_rate: 1e-2, seed: 1}\n"
            "hardware: {log_every_steps: 1}\n",
            "utf-8",
        )
        return load_recipe(str(path), overrides)

    return build


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Send a signal to the next run while it computes the given optimizer step; later runs are not affected."""
    from bertcli.training import trainer

    def arm(step: int, signal_number: int = signal.SIGTERM) -> None:
        train_steps = trainer.train_steps

        def interrupted(*args: Any, **options: Any) -> Iterator[Any]:
            monkeypatch.setattr(trainer, "train_steps", train_steps)
            for record in train_steps(*args, **options):
                if record.step == step:
                    os.kill(os.getpid(), signal_number)
                yield record

        monkeypatch.setattr(trainer, "train_steps", interrupted)

    return arm
