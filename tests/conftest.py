"""Tiny but real things the tests share; no file of another project, no network."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from bertcli.recipe.schema import Recipe

os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")  # tiny matrices lose by threads

REPOSITORY = Path(__file__).parent.parent
MIRROR = REPOSITORY.parent / "shared" / "mirror"
TEXTS = ["a fine film", "a dull film", "what a lovely day", "the soup was awful", "i love the harbour", "bad train"]


def _overwrite_beginning(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"}" * min(9, path.stat().st_size))


HARMS: dict[str, Callable[[Path], object]] = {  # what may happen to a file
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 2),
    "missing": lambda path: path.unlink(),
    "broken": _overwrite_beginning,
}


@pytest.fixture(autouse=True, scope="session")
def _in_fp32() -> Iterator[None]:
    """`precision: auto` is fp32 on every machine that tests run on, whatever its CPU computes."""
    from bertcli.training import devices

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "cpu_computes_bf16", lambda: False)
        yield


@pytest.fixture(autouse=True)
def _no_precision_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """An `Accelerator` that is told no precision takes that of the one before it."""
    from accelerate.state import AcceleratorState

    monkeypatch.setattr(AcceleratorState, "_shared_state", {})


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in its own folder and sees no mirror."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BERTCLI_MIRROR", raising=False)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """Write rows to a CSV (or, by its ending, TSV) file in the test's folder."""

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
    """A CSV file of 40 labelled texts."""
    rows = [[f"the {noun} was {word}", label] for noun in ("film", "soup", "train", "day", "book") for word, label in
            (("fine", "positive"), ("lovely", "positive"), ("good", "positive"), ("superb", "positive"),
             ("bad", "negative"), ("awful", "negative"), ("dull", "negative"), ("vile", "negative"))]  # fmt: skip
    return write_csv("reviews.csv", ["text", "label"], rows)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved BERT encoder, 2 layers of 16, with its tokenizer and no classifier."""
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
        initializer_range=0.2,  # so narrow a model learns nothing from BERT's 0.02
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    save_model(BertModel(config), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def roberta_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer as RoBERTa's: a space belongs to the word behind it, no segments."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizer

    learner = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    learner.train_from_iterator(TEXTS, vocab_size=300, special_tokens=special, show_progress=False)
    state = json.loads(learner._tokenizer.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in state["merges"]]
    return RobertaTokenizer(vocab=state["vocab"], merges=merges, add_prefix_space=True)


@pytest.fixture(params=["wordpiece", "byte-level"])
def tokenizer(
    request: pytest.FixtureRequest, encoder: Path, roberta_tokenizer: PreTrainedTokenizerBase
) -> PreTrainedTokenizerBase:
    """A tokenizer of each make."""
    from bertcli.models.from_pretrained import load_tokenizer

    return load_tokenizer(str(encoder), None) if request.param == "wordpiece" else roberta_tokenizer


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
    """The recipe of a run of a few steps over the reviews, with overrides; the cache is its own."""
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
