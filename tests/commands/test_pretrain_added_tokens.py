"""Pretraining with `tokenizer.add_tokens`: continued from a model or from scratch, resumed, saved and scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from bertcli.commands.evaluate import evaluate
from bertcli.commands.pretrain import pretrain
from bertcli.console import Console
from bertcli.data.sample import sample_documents
from bertcli.errors import Interrupted, ModelError
from bertcli.pretraining.setup import set_up
from bertcli.recipe.load import load_pretrain_recipe
from bertcli.recipe.pretrain_schema import PretrainRecipe
from bertcli.runs.folder import RunOptions

from ..conftest import QUIET

DECODER = "bert.embeddings.word_embeddings.weight"


@pytest.fixture(autouse=True)
def _cache_and_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path / "cache"))
    Path("corpus.txt").write_text("\n\n".join(f"{text} with Imatinib [DRUG]" for text in sample_documents(100)))
    Path("words.txt").write_text("imatinib\n[DRUG]\nunused\n")


def recipe_of(*overrides: str, model: str) -> PretrainRecipe:
    Path("recipe.yaml").write_text(
        "corpus: {sources: [{files: corpus.txt}], held_out_fraction: 0.1}\n"
        f"model: {model}\ntokenizer: {{add_tokens: words.txt}}\nphases: [{{max_length: 32}}]\n"
        "training: {max_steps: 6, global_batch_size: 16, learning_rate: 3e-3, weight_decay: 0}\n"
    )
    return load_pretrain_recipe("recipe.yaml", overrides)


def run(recipe: PretrainRecipe, folder: str = "run", **options: Any) -> Any:
    return pretrain(recipe, Path(folder), RunOptions(**{"console": QUIET} | options))


def test_continued_pretraining_with_added_tokens(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(model=f"{{name: {encoder}}}")
    run(recipe, dry_run=True, console=Console())
    assert "tokenizer 3 added tokens\n" in capsys.readouterr().err
    results = run(recipe)
    tokenizer = transformers.AutoTokenizer.from_pretrained("run/model")
    model = transformers.AutoModelForMaskedLM.from_pretrained("run/model")
    assert model.config.vocab_size == len(tokenizer) == transformers.AutoConfig.from_pretrained(encoder).vocab_size + 3
    ids = tokenizer.convert_tokens_to_ids(["imatinib", "[DRUG]"])
    corpus = set_up(recipe, None, QUIET).corpus
    assert {*ids} <= {*corpus.tokens.tolist()}
    scores = results.mean_scores("validation")
    assert evaluate("run", console=QUIET).metrics["validation"] == pytest.approx(scores, rel=1e-5)
    Path("words.txt").write_text("imatinib\nunused\n[DRUG]\n")
    with pytest.raises(ModelError, match=r"run was trained with other added tokens; restore the file"):
        evaluate("run", console=QUIET)


def test_rows_start_as_the_means_of_their_pieces(encoder: Path) -> None:
    recipe = recipe_of("training.learning_rate=1e-9", model=f"{{name: {encoder}}}")
    pieces = set_up(recipe, None, QUIET).added_tokens.pieces
    run(recipe)
    old = load_file(encoder / "model.safetensors")[DECODER.removeprefix("bert.")]
    trained = load_file("run/model/model.safetensors")[DECODER]
    assert len(pieces) == 3
    for index, ids in pieces.items():
        torch.testing.assert_close(trained[index], old[ids].mean(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("objective", ["{kind: masked_lm, masking: whole_word}", "{kind: replaced_token_detection}"])
def test_new_model_has_added_tokens_and_resumes_exactly(stop_after: Callable[..., None], objective: str) -> None:
    family = "electra" if "replaced" in objective else "bert"
    sizes = "hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64"
    overrides = ["tokenizer.vocab_size=500", f"objective={objective}"]
    recipe = recipe_of(*overrides, model=f"{{family: {family}, size: null, config_overrides: {{{sizes}}}}}")
    run(recipe, "uninterrupted")
    stop_after(3)
    with pytest.raises(Interrupted):
        run(recipe)
    run(recipe)
    expected = load_file("uninterrupted/model/model.safetensors")
    assert all(torch.equal(expected[name], part) for name, part in load_file("run/model/model.safetensors").items())
    assert transformers.AutoConfig.from_pretrained("run/model").vocab_size % 64 == 0
    assert "imatinib" in transformers.AutoTokenizer.from_pretrained("run/model").get_vocab()


def test_electra_continues_with_added_tokens(encoder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ElectraConfig(vocab_size=len(tokenizer), embedding_size=32, **sizes)
    transformers.ElectraForPreTraining(config).save_pretrained("electra")
    tokenizer.save_pretrained("electra")
    run(recipe_of("objective.kind=replaced_token_detection", model="{name: ./electra}"))
    assert transformers.AutoConfig.from_pretrained("run/model").vocab_size == len(tokenizer) + 3
