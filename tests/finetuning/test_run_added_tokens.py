"""Fine-tuning with `model.add_tokens`: new rows are trained, saved and resumed; predictions equal transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from bertcli.commands.predict import predict
from bertcli.console import Console
from bertcli.data.prediction_inputs import PredictionInput
from bertcli.errors import DataError, Interrupted, RecipeError, RunFolderError
from bertcli.finetuning.run import finetune
from bertcli.finetuning.setup import set_up
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import Recipe
from bertcli.runs.folder import RunOptions

from ..conftest import QUIET

EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
TOKENS = 'model.add_tokens=[superb, Vile, "[DRUG]", film, unused]'


@pytest.fixture
def recipe_with_tokens(recipe_of: Callable[..., Recipe], reviews: Path) -> Callable[..., Recipe]:
    """Build the recipe of a run whose rows have added tokens."""
    reviews.write_text(reviews.read_text("utf-8").replace("dull", "Vile [DRUG]"), "utf-8")

    def build(*overrides: str) -> Recipe:
        return recipe_of(TOKENS, *overrides)

    return build


def run(recipe: Recipe, folder: str = "run", **options: Any) -> Any:
    return finetune(recipe, Path(folder), RunOptions(**{"console": QUIET} | options))


def test_dry_run_says_how_many_tokens_are_added(
    recipe_with_tokens: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe_with_tokens(), dry_run=True, console=Console())
    assert "tokenizer 4 added tokens; skipped 1 already in the vocabulary: film\n" in capsys.readouterr().err
    assert not Path("run").exists()


def test_predictions_equal_those_of_plain_transformers(
    recipe_with_tokens: Callable[..., Recipe], encoder: Path
) -> None:
    run(recipe_with_tokens())
    model = transformers.AutoModelForSequenceClassification.from_pretrained("run/model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("run/model")
    size = transformers.AutoConfig.from_pretrained(encoder).vocab_size
    assert model.config.vocab_size == size + 4 == len(tokenizer)
    texts = ["the film was superb", "the soup was VILE [DRUG]", "a superbly vile film"]
    predict("run", PredictionInput([[text] for text in texts]), "out.jsonl", console=QUIET)
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    with torch.no_grad():
        expected = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(-1)
    for row, probabilities in zip(rows, expected, strict=True):
        assert [*row["probabilities"].values()] == pytest.approx(probabilities.tolist(), abs=1e-5)
    used = tokenizer(texts[1])["input_ids"]
    assert {*used} >= {*tokenizer.convert_tokens_to_ids(["Vile", "[DRUG]"])}


def test_seen_rows_are_trained_and_others_stay_the_mean_of_their_pieces(
    recipe_with_tokens: Callable[..., Recipe], encoder: Path
) -> None:
    recipe = recipe_with_tokens("training.weight_decay=0")
    added = set_up(recipe, None).added_tokens.pieces
    run(recipe)
    tokenizer = transformers.AutoTokenizer.from_pretrained("run/model")
    trained = load_file("run/model/model.safetensors")[EMBEDDINGS]
    old = load_file(encoder / "model.safetensors")[EMBEDDINGS.removeprefix("bert.")]
    for token, is_seen in (("superb", True), ("Vile", True), ("[DRUG]", True), ("unused", False)):
        index = tokenizer.convert_tokens_to_ids(token)
        assert torch.allclose(trained[index], old[added[index]].mean(0), atol=1e-6) != is_seen


def test_run_with_added_tokens_resumes_exactly(
    recipe_with_tokens: Callable[..., Recipe], stop_after: Callable[..., None]
) -> None:
    Path("words.txt").write_text("superb\nVile\n[DRUG]\n")
    recipe = recipe_with_tokens("model.add_tokens=words.txt", "model.dropout=0.1")
    run(recipe, "uninterrupted")
    stop_after(3)
    with pytest.raises(Interrupted):
        run(recipe)
    Path("words.txt").write_text("superb\nVile\nthing\n")
    with pytest.raises(RunFolderError, match="training or validation data have changed"):
        run(recipe)
    Path("words.txt").write_text("superb\nVile\n[DRUG]\n")
    run(recipe)
    expected = load_file("uninterrupted/model/model.safetensors")
    assert all(torch.equal(expected[name], part) for name, part in load_file("run/model/model.safetensors").items())
    assert load_recipe("run/recipe.yaml").model.add_tokens == str(Path("words.txt").resolve())
    with pytest.raises(RunFolderError, match=r"different recipe:[^.]*  add_tokens: /"):
        run(recipe_with_tokens(), "run")


@pytest.mark.parametrize("strategy", ["features", "gradual"])
def test_added_tokens_work_with_strategies(recipe_with_tokens: Callable[..., Recipe], strategy: str) -> None:
    run(recipe_with_tokens(f"training.strategy={strategy}"))
    transformers.AutoModelForSequenceClassification.from_pretrained("run/model")


def test_lora_saves_added_tokens_only_if_merged(recipe_with_tokens: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match=r"which a LoRA adapter does not save; set training\.lora_merge=true"):
        run(recipe_with_tokens("training.strategy=lora"))
    run(recipe_with_tokens("training.strategy=lora", "training.lora_merge=true"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained("run/model")
    assert len(transformers.AutoTokenizer.from_pretrained("run/model")) == model.config.vocab_size


def test_model_from_scratch_has_added_tokens(recipe_with_tokens: Callable[..., Recipe]) -> None:
    run(recipe_with_tokens("model.name=null", "model.size=tiny", "model.vocab_size=100"))
    tokenizer = transformers.AutoTokenizer.from_pretrained("run/model")
    assert transformers.AutoConfig.from_pretrained("run/model").vocab_size == len(tokenizer)
    assert "[DRUG]" in tokenizer.get_vocab()


def test_missing_file_of_tokens_is_refused_before_the_libraries_are_loaded(
    recipe_with_tokens: Callable[..., Recipe],
) -> None:
    from bertcli.commands.finetune import finetune as command

    with pytest.raises(DataError, match=r"cannot read .*nowhere\.txt, the file of model\.add_tokens"):
        command(recipe_with_tokens("model.add_tokens=nowhere.txt"), Path("run"), RunOptions(console=QUIET))


@pytest.fixture
def tagger_recipe(encoder: Path, write_recipe: Callable[..., Path]) -> Callable[..., Recipe]:
    """Build the recipe of a tagger whose rows have added tokens, as lists of words or as texts with spans."""
    words = ["the", "C++", "film", "[DRUG]", "was", "il-2", "."]
    tags = ["O", "B-X", "O", "B-Y", "O", "B-Z", "O"]
    row = {"tokens": words, "tags": tags, "text": " ".join(words), "spans": [[4, 7, "X"], [13, 19, "Y"]]}
    Path("rows.jsonl").write_text(f"{json.dumps(row)}\n" * 12, "utf-8")

    def build(task: str) -> Recipe:
        text = f"task: {{head: token_classification, files: {{train: rows.jsonl}}, {task}}}\n"
        text += f"model: {{name: {encoder}}}\ntraining: {{epochs: 9, learning_rate: 1e-2, global_batch_size: 4}}\n"
        return load_recipe(str(write_recipe(text)), ['model.add_tokens=["[DRUG]", C++, IL-2]', "data.max_length=32"])

    return build


def test_words_of_a_plain_text_keep_added_tokens_whole(tagger_recipe: Callable[..., Recipe]) -> None:
    run(tagger_recipe("text_columns: [tokens], label_column: tags"))
    text = "The C++ film[DRUG], was C++x (IL-2)."
    expected = ["The", "C++", "film", "[DRUG]", ",", "was", "C", "+", "+", "x", "(", "IL-2", ")", "."]
    predict("run", PredictionInput([[text]]), "text.jsonl", console=QUIET)
    prediction = json.loads(Path("text.jsonl").read_text("utf-8"))
    assert prediction["words"] == expected
    drug = next(entity for entity in prediction["entities"] if entity["label"] == "Y")
    assert (drug["start"], drug["text"]) == (12, "[DRUG]")
    Path("words.jsonl").write_text(json.dumps({"tokens": expected}), "utf-8")
    predict("run", PredictionInput(path="words.jsonl"), "out.jsonl", console=QUIET)
    assert json.loads(Path("out.jsonl").read_text("utf-8"))["tags"] == prediction["tags"]


def test_added_tokens_that_are_not_words_of_texts_with_spans_are_reported(
    tagger_recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    run(tagger_recipe("text_columns: [text], span_column: spans"), dry_run=True, console=Console())
    assert "3 of the tokens in model.add_tokens, such as '[DRUG]', are never" in " ".join(
        capsys.readouterr().err.split()
    )
