"""Pretraining gives a model that plain transformers loads and fine-tuning starts from; an interrupted run resumes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bertcli.commands.evaluate import evaluate
from bertcli.commands.predict import predict
from bertcli.commands.pretrain import pretrain
from bertcli.console import Console
from bertcli.data.batching import GlobalBatch
from bertcli.data.packing import pack_sequences
from bertcli.data.prediction_inputs import PredictionInput
from bertcli.data.sample import NEUTRAL_SENTENCES, sample_documents
from bertcli.errors import (
    DataError,
    DiskError,
    Interrupted,
    ModelError,
    RecipeError,
    RunFolderError,
    TrainingError,
    UsageError,
)
from bertcli.finetuning.run import finetune
from bertcli.inference.fill_mask import has_masked_lm_head
from bertcli.models.from_pretrained import ModelSource
from bertcli.models.from_scratch import build_config, build_from_config
from bertcli.models.tokenizer_matching import first_position_id
from bertcli.models.tokenizer_training import train_tokenizer
from bertcli.pretraining.batches import BatchStream, read_texts
from bertcli.pretraining.job import PretrainJob
from bertcli.pretraining.setup import resolve_phases, set_up
from bertcli.recipe.load import load_pretrain_recipe, load_recipe
from bertcli.recipe.pretrain_schema import ArchitectureSection, PretrainRecipe
from bertcli.runs.folder import RunOptions
from bertcli.runs.results import RunResults
from bertcli.training import trainer
from bertcli.training.devices import prepare_batch
from bertcli.training.meters import RunClock

from ..conftest import CORRUPTIONS, QUIET

SMALL = "{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64}"


@pytest.fixture(autouse=True)
def _cache_and_corpus(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    Path("corpus.txt").write_text(_corpus())


@cache
def _corpus() -> str:
    return "\n\n".join(sample_documents(400))


@pytest.fixture
def _fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at a run's clock takes 0.05 seconds; a step looks once."""
    num_reads = 0

    def elapsed_seconds(clock: RunClock) -> float:
        nonlocal num_reads
        num_reads += 1
        return num_reads * 0.05

    monkeypatch.setattr(RunClock, "elapsed_seconds", property(elapsed_seconds))


def small_recipe(*overrides: str, **sections: str) -> PretrainRecipe:
    text = {
        "corpus": "{sources: [{files: corpus.txt}], held_out_fraction: 0.1}",
        "tokenizer": "{vocab_size: 500}",
        "model": f"{{size: null, config_overrides: {SMALL}}}",
        "phases": "[{max_length: 32}]",
        "training": "{max_steps: 12, global_batch_size: 16, learning_rate: 3e-3}",
    } | sections
    Path("recipe.yaml").write_text("".join(f"{key}: {value}\n" for key, value in text.items()))
    return load_pretrain_recipe("recipe.yaml", overrides)


def run(*overrides: str, folder: str = "run", **sections: str) -> RunResults:
    return pretrain(small_recipe(*overrides, **sections), Path(folder), RunOptions(console=QUIET))


def test_pretrained_model_loads_in_transformers_and_beats_the_unigram_baseline() -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    random = Random(0)
    Path("corpus.txt").write_text("\n\n".join(" . ".join(random.choices(NEUTRAL_SENTENCES, k=4)) for _ in range(400)))
    results = run("training.max_steps=160", "evaluation.every_steps=80", "training.learning_rate=5e-3")
    scores = results.mean_scores("validation")
    assert results.unigram_cross_entropy is not None
    assert scores["loss"] < results.unigram_cross_entropy - 0.3
    assert scores["perplexity"] == pytest.approx(np.exp(scores["loss"]), rel=1e-5)
    assert evaluate("run", console=QUIET).metrics["validation"] == pytest.approx(scores, rel=1e-6)
    model, report = AutoModelForMaskedLM.from_pretrained("run/model", output_loading_info=True)
    assert not report["missing_keys"]
    assert model.config.vocab_size % 64 == 0
    tokenizer = AutoTokenizer.from_pretrained("run/model")
    assert len(tokenizer) <= model.config.vocab_size
    assert {path.name for path in Path("run").iterdir()} >= {"recipe.yaml", "train.jsonl", "results.json", "README.md"}


def test_mask_filling_equals_the_transformers_pipeline() -> None:
    from transformers import pipeline

    run("training.max_steps=20")
    texts = ["anna saw the [MASK] .", "the [MASK] was [MASK] ."]
    predict("run", PredictionInput([[text] for text in texts]), "out.jsonl", top_k=3, console=QUIET)
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == texts
    fill = pipeline("fill-mask", model="run/model", top_k=3)
    expected_rows = [[fill(texts[0])], fill(texts[1])]
    for row, expected_masks in zip(rows, expected_rows, strict=True):
        for predictions, expected in zip(row["masks"], expected_masks, strict=True):
            assert [prediction["token"] for prediction in predictions] == [token["token_str"] for token in expected]
            probabilities = [prediction["probability"] for prediction in predictions]
            assert probabilities == pytest.approx([token["score"] for token in expected], abs=1e-4)


def test_mask_filling_rejects_texts_without_masks_and_unsupported_options() -> None:
    run("training.max_steps=1")
    with pytest.raises(DataError, match=r"row 2 has no \[MASK\]"):
        predict("run", PredictionInput([["the [MASK] ."], ["nothing to fill"]]), "no-mask.jsonl", console=QUIET)
    long_text = PredictionInput([["a [MASK] " + "word " * 600 + "[MASK]"]])
    with pytest.raises(DataError, match=r"row 1 has 2 \[MASK\], but only 1 among its first"):
        predict("run", long_text, "too-long.jsonl", console=QUIET)
    for inputs, format_name, option in (
        (PredictionInput(split="test"), "jsonl", "--split"),
        (PredictionInput([["a [MASK]"]]), "squad", "--format squad"),
        (PredictionInput([["a [MASK]", "b"]]), "jsonl", "--pair"),
    ):
        with pytest.raises(UsageError, match=f"fills masks in single texts; leave out {option}"):
            predict("run", inputs, "none", format_name, console=QUIET)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_damaged_tokenizer_in_the_cache_is_trained_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], corruption: str
) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(Path("cache").resolve()))
    vocab = set_up(small_recipe(), None, QUIET).tokenizer.get_vocab()
    (file,) = Path("cache/tokenizers").glob("*/tokenizer.json")
    CORRUPTIONS[corruption](file)
    assert set_up(small_recipe(), None, QUIET).tokenizer.get_vocab() == vocab
    printed = capsys.readouterr().err.replace("\n", "")
    assert re.search(r"is damaged \(.*tokenizer\.json", printed)
    assert file.parent.name in printed


def test_non_finite_score_stops_the_run_and_is_never_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    train_steps = trainer.train_steps

    def with_nan_weights(accelerator: Any, model: torch.nn.Module, *args: Any, **options: Any) -> Iterator[Any]:
        for record in train_steps(accelerator, model, *args, **options):
            if record.step == 4:
                next(model.parameters()).data.fill_(float("nan"))
            yield record

    monkeypatch.setattr(trainer, "train_steps", with_nan_weights)
    with pytest.raises(TrainingError, match="non-finite"):
        run("training.max_steps=8", "evaluation.every_steps=4")
    assert not Path("run/model").exists()


def test_finished_run_is_read_without_its_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    results = run("training.max_steps=2")
    recipe = small_recipe("training.max_steps=2")
    Path("corpus.txt").unlink()
    assert pretrain(recipe, Path("run"), RunOptions(console=Console())) == results
    assert "run is already finished; showing its results" in capsys.readouterr().err


def test_fine_tuning_starts_from_a_pretraining_run() -> None:
    run()
    overrides = ["model.name=run", "training.max_steps=2", "data.max_train_examples=40", "data.max_length=32"]
    results = finetune(load_recipe("sample/sentiment", overrides), Path("finetuned"), RunOptions(console=QUIET))
    assert 0 <= results.mean("accuracy") <= 1


@pytest.mark.parametrize("pairs", ["next_sentence", "sentence_order"])
def test_pair_objective_is_trained_together_with_masked_lm(pairs: str) -> None:
    from transformers import BertForPreTraining

    results = run(objective=f"{{pairs: {pairs}, masking: whole_word}}")
    assert set(results.metrics["validation"]) == {"accuracy", "loss", "pair_accuracy", "perplexity"}
    assert json.loads(Path("run/model/config.json").read_text())["architectures"] == ["BertForPreTraining"]
    BertForPreTraining.from_pretrained("run/model")


def test_albert_predicts_sentence_order() -> None:
    fields = SMALL.replace("}", ", embedding_size: 16}")
    results = run(
        model=f"{{family: albert, size: null, config_overrides: {fields}}}", objective="{pairs: sentence_order}"
    )
    assert 0 <= results.mean("pair_accuracy") <= 1


@pytest.mark.parametrize(("documents", "warns"), [("lines", True), ("blocks", False)])
def test_pair_objective_warns_about_single_sentence_documents(
    capsys: pytest.CaptureFixture[str], documents: str, warns: bool
) -> None:
    Path("corpus.txt").write_text(
        "a film . a day .\n\n" + "\n\n".join("a film .\nthe soup was awful .\nbad day ." for _ in range(200))
    )
    corpus = f"{{sources: [{{files: corpus.txt, documents: {documents}}}], held_out_fraction: 0.1}}"
    set_up(small_recipe(corpus=corpus, objective="{pairs: next_sentence}"), None, Console())
    printed = capsys.readouterr().err
    assert ("of the sentence pairs are positive, because most documents have only one sentence" in printed) == warns


@pytest.mark.parametrize(
    ("text", "sections", "message"),
    [
        ("a fine film", {"objective": "{pairs: next_sentence}"}, "every document has only one sentence"),
        ("film", {"objective": "{pairs: sentence_order}"}, "no document has the two tokens"),
        ("x" * 200, {}, r"100\.0% of the corpus tokens are unknown .*tokenizer\.kind=bpe"),
    ],
)
def test_corpus_that_teaches_nothing_is_refused(text: str, sections: dict[str, str], message: str) -> None:
    Path("corpus.txt").write_text("\n\n".join([text] * 200))
    with pytest.raises(DataError, match=message):
        set_up(small_recipe(corpus="{sources: [{files: corpus.txt}], held_out_fraction: 0.1}", **sections), None, QUIET)


@pytest.mark.parametrize(
    ("family", "tokenizer_kind", "masking"),
    [
        ("roberta", "bpe", "span"),
        ("electra", "unigram", "whole_word"),
        ("distilbert", "wordpiece", "token"),
        ("modernbert", "bpe", "token"),
    ],
)
def test_other_families_and_tokenizers(family: str, tokenizer_kind: str, masking: str) -> None:
    fields = "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2}"
    results = run(
        "training.max_steps=3",
        model=f"{{family: {family}, size: null, config_overrides: {fields}}}",
        tokenizer=f"{{kind: {tokenizer_kind}, vocab_size: 500}}",
        objective=f"{{masking: {masking}}}",
    )
    assert results.family == family
    assert np.isfinite(results.mean("loss"))


def test_mobilebert_predicts_masked_tokens_with_two_output_matrices() -> None:
    fields = (
        "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intra_bottleneck_size: 16, embedding_size: 16}"
    )
    results = run("training.max_steps=2", model=f"{{family: mobilebert, size: null, config_overrides: {fields}}}")
    assert np.isfinite(results.mean("loss"))
    assert evaluate("run", console=QUIET).metrics["validation"]["loss"] == pytest.approx(results.mean("loss"), rel=1e-5)


def test_objective_that_the_family_does_not_support_is_refused() -> None:
    with pytest.raises(ModelError, match=r"t5 has no model for masked lm \(AutoModelForMaskedLM\)"):
        run(model="{family: t5, size: null}")


@pytest.mark.parametrize("family", ["roberta", "mpnet"])
def test_new_model_has_enough_positions_for_its_phases(encoder: Path, family: str) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = build_config(ArchitectureSection(family=family, size=None, config_overrides=fields), tokenizer, 40)
    model = build_from_config(config, "AutoModelForMaskedLM")
    assert model(torch.full((1, 40), 5)).logits.shape[1] == 40


@pytest.mark.parametrize(("size", "millions"), [("base", 110), ("large", 336)])
def test_base_and_large_have_as_many_parameters_as_in_the_paper(encoder: Path, size: str, millions: int) -> None:
    """Devlin et al. 2019 report 110M and 340M; with BERT's vocabulary of 30,522 these are 109.5M and 335.1M."""
    config = build_config(
        ArchitectureSection(size=size),  # type: ignore[arg-type]
        ModelSource(str(encoder)).load_tokenizer(),
        512,
    )
    config.vocab_size = 30522
    with torch.device("meta"):
        num_parameters = build_from_config(config, "AutoModel").num_parameters()
    assert num_parameters / 1e6 == pytest.approx(millions, abs=1)


def test_causal_lm_does_not_attend_to_later_tokens() -> None:
    from transformers import AutoModelForCausalLM

    model = "{family: gpt2, size: null, config_overrides: {n_embd: 32, n_layer: 2, n_head: 2}}"
    run(model=model, tokenizer="{kind: bpe, vocab_size: 500}", objective="{kind: causal_lm}")
    module = AutoModelForCausalLM.from_pretrained("run/model").eval()
    ids, changed = torch.tensor([[9, 10, 11, 12]]), torch.tensor([[9, 10, 11, 99]])
    with torch.inference_mode():
        assert torch.allclose(module(ids).logits[0, :3], module(changed).logits[0, :3], atol=1e-5)


def test_replaced_token_detection_learns_and_saves_only_the_discriminator() -> None:
    from transformers import AutoModelForPreTraining, ElectraForPreTraining

    fields = "{hidden_size: 32, embedding_size: 32, num_hidden_layers: 2, num_attention_heads: 4}"
    results = run(
        "training.max_steps=80",
        model=f"{{family: electra, size: null, config_overrides: {fields}}}",
        objective="{kind: replaced_token_detection, discriminator_weight: 5}",
    )
    scores = results.mean_scores("validation")
    assert set(scores) == {"loss", "accuracy", "generator_loss", "generator_accuracy"}
    assert scores["generator_loss"] < 6.2  # a uniform guess has a loss of ln 500 = 6.2
    model, report = AutoModelForPreTraining.from_pretrained("run/model", output_loading_info=True)
    assert isinstance(model, ElectraForPreTraining)
    assert not report["missing_keys"]
    assert not any("generator" in name for name in model.state_dict())
    with pytest.raises(ModelError, match="cannot fill masks"):
        has_masked_lm_head(ModelSource("run"))
    with pytest.raises(ModelError, match="contains only the discriminator"):
        evaluate("run", console=QUIET)


def test_replaced_token_detection_requires_electra() -> None:
    with pytest.raises(ModelError, match="expected electra"):
        run(objective="{kind: replaced_token_detection}")


def test_span_corruption_trains_an_encoder_decoder() -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    fields = "{d_model: 32, d_kv: 8, d_ff: 64, num_layers: 1, num_decoder_layers: 1, num_heads: 4}"
    results = run(
        "training.max_steps=60",
        model=f"{{family: t5, size: null, config_overrides: {fields}}}",
        tokenizer="{kind: unigram, vocab_size: 500}",
        objective="{kind: span_corruption}",
    )
    assert results.mean("loss") < 5.5
    model, tokenizer = (auto.from_pretrained("run/model") for auto in (AutoModelForSeq2SeqLM, AutoTokenizer))
    assert "<extra_id_0>" in tokenizer.get_vocab()
    ids = tokenizer("anna saw the <extra_id_0> .", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=3).shape[1] <= 4


def test_continued_pretraining_starts_from_a_model_and_its_tokenizer() -> None:
    first = run("training.max_steps=40", folder="first")
    overrides = ["training.max_steps=2", "training.learning_rate=1e-9"]
    second = run(*overrides, folder="second", model="{name: first}", tokenizer="{}")
    assert second.vocab_size == first.vocab_size
    assert second.mean("loss") == pytest.approx(first.mean("loss"), abs=1e-4)


def test_keys_of_a_new_model_or_tokenizer_are_refused_where_an_existing_one_is_named() -> None:
    new_tokenizer = "kind: bpe, vocab_size: 400, lowercase: false, sample_megabytes: 1"
    with pytest.raises(RecipeError) as error:
        run(
            model=f"{{name: first, family: t5, size: tiny, config_overrides: {SMALL}}}",
            tokenizer=f"{{{new_tokenizer}}}",
        )
    keys = [problem.split()[0] for problem in error.value.problems]
    assert keys == [
        *("model.family", "model.size", "model.config_overrides"),
        *("tokenizer.kind", "tokenizer.vocab_size", "tokenizer.lowercase", "tokenizer.sample_megabytes"),
    ]
    assert "because model.name is set; remove it, or set model.family=bert where it is inherited" in str(error.value)
    with pytest.raises(RecipeError, match=r"tokenizer\.lowercase has no effect, because tokenizer\.name is set"):
        run(tokenizer="{name: first, lowercase: false}")
    defaults = "family: bert, size: null, config_overrides: {}"
    with pytest.raises(ModelError, match="cannot load"):  # defaults, as in the recipe of a run folder, are not refused
        run(model=f"{{name: nowhere, {defaults}}}", tokenizer="{kind: wordpiece, vocab_size: 30522}")
    assert not Path("run").exists()


def test_continued_pretraining_starts_from_the_chosen_point_of_a_grid(
    encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(encoder, "grid/point/model")
    Path("grid/results.json").write_text('{"chosen": "point"}')
    recipe = small_recipe(model="{name: grid}", tokenizer="{name: grid}")
    pretrain(recipe, Path("run"), RunOptions(dry_run=True, console=Console()))
    assert "model     grid/point\n" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_packed_sequences_have_the_same_losses_as_alone(family: str) -> None:
    fields = "{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}"
    model_section = f"{{family: {family}, size: null, config_overrides: {fields}}}"
    setup = set_up(small_recipe(model=model_section, phases="[{max_length: 64}]"), None, QUIET)
    texts = read_texts(setup.corpus, setup.held_out, np.arange(24))
    unpacked: Any = setup.objective.build_targets(texts, np.random.default_rng(0))
    rows = pack_sequences(unpacked.num_tokens, 64)
    assert len(rows) < 24
    packed = unpacked.packed(rows, first_position_id(setup.config))
    torch.manual_seed(0)
    model = build_from_config(setup.config, setup.objective.model_class).eval()

    def token_losses(targets: Any, items: np.ndarray) -> list[list[float]]:
        """The loss of each target token of each row."""
        batch = prepare_batch(targets.batch(items), model, torch.device("cpu"))
        del batch["labels"], batch["target_positions"]
        with torch.inference_mode():
            logits = model(**batch).logits
        labels = targets.batch(items)["labels"]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return [losses.view(labels.shape)[row][labels[row] != -100].tolist() for row in range(len(items))]

    expected = token_losses(unpacked, np.arange(24))
    for row, losses in zip(rows, token_losses(packed, np.arange(len(rows))), strict=True):
        assert losses == pytest.approx([loss for sequence in row for loss in expected[sequence]], abs=1e-4)


@pytest.mark.parametrize(("precision", "is_rounded"), [("bf16", True), ("fp32", False)])
def test_number_of_predicted_tokens_is_rounded_up_where_each_compiles_its_own_products(
    precision: str, is_rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, prepare = [], prepare_batch

    def record(*args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = prepare(*args, **kwargs)
        lengths.append(len(inputs["labels"]))
        return inputs

    for module in ("bertcli.training.loop", "bertcli.pretraining.job"):
        monkeypatch.setattr(f"{module}.prepare_batch", record)
    run("training.max_steps=8", f"hardware.precision={precision}")
    assert all(length % 4 == 0 for length in lengths if 64 <= length < 128) == is_rounded
    assert len(lengths) > 8  # evaluations included


def test_packing_fills_rows_and_warns_if_the_family_does_not_support_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bertcli.console.LOG_INTERVAL_SECONDS", 0.0)
    results = run("packing=true", "training.max_steps=3", phases="[{max_length: 256}]")
    assert results.padding_share is not None
    assert results.padding_share < 0.1
    model = "{family: mpnet, size: tiny, config_overrides: {hidden_size: 32, num_hidden_layers: 1}}"
    recipe = small_recipe("packing=true", "training.max_steps=2", model=model)
    pretrain(recipe, Path("other"), RunOptions(console=Console()))
    printed = " ".join(capsys.readouterr().err.split())
    assert "mpnet does not support packing" in printed
    assert re.search(r"step 2/2 evaluating [1-9]", printed)


def test_phases_run_one_after_the_other_with_their_lengths_and_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    original = PretrainJob.batches

    def recorded(job: PretrainJob, accelerator: Any, start_step: int, clock: RunClock) -> Iterator[GlobalBatch]:
        for batch in original(job, accelerator, start_step, clock):
            seen.append((batch.num_examples, max(micro["input_ids"].shape[1] for micro in batch.micro_batches)))
            yield batch

    monkeypatch.setattr(PretrainJob, "batches", recorded)
    run(phases="[{max_length: 16, fraction: 0.75}, {max_length: 64, fraction: 0.25, global_batch_size: 4}]")
    assert len(seen) == 12
    assert all(batch_size == 16 and length <= 16 for batch_size, length in seen[:9])
    assert all(batch_size == 4 and length <= 64 for batch_size, length in seen[9:])
    assert max(length for _, length in seen[9:]) > 16


@pytest.mark.usefixtures("_fake_clock")
def test_time_budget_ends_the_run_and_scales_its_schedule() -> None:
    overrides = ["training.budget=2s", "training.max_steps=100000", "evaluation.every_epochs=null"]
    results = run(*overrides, "hardware.log_every_steps=1")
    assert results.total_steps == pytest.approx(2 / 0.05, abs=2)
    lines = [json.loads(line) for line in Path("run/train.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines]
    assert rates[-1] < 0.2 * max(rates)
    assert run(*overrides, "hardware.log_every_steps=1") == results


@pytest.mark.usefixtures("_fake_clock")
@pytest.mark.parametrize(("warmup_steps", "expected"), [("null", [1, 1, 1, 1, 1]), ("4", [0.25, 0.5, 0.75, 1, 1])])
def test_time_budget_keeps_the_number_of_warmup_steps(warmup_steps: str, expected: list[float]) -> None:
    overrides = [f"training.warmup_steps={warmup_steps}", "training.schedule=constant"]
    run("training.budget=60s", "training.max_steps=6", *overrides, "hardware.log_every_steps=1")
    rates = [json.loads(line)["learning_rate"] for line in Path("run/train.jsonl").read_text().splitlines()]
    assert [rate / 3e-3 for rate in rates[1:]] == pytest.approx(expected)


def test_trained_tokenizer_saves_the_models_maximum_length() -> None:
    run("training.max_steps=1", phases="[{max_length: 600}]")
    assert json.loads(Path("run/model/tokenizer_config.json").read_text())["model_max_length"] == 600
    with pytest.raises(
        ModelError, match="found 700 for the max_length of a phase, expected at most 600, the limit of run"
    ):
        run("training.max_steps=1", model="{name: run}", tokenizer="{}", phases="[{max_length: 700}]", folder="longer")


TWO_PHASES = ["phases=[{max_length: 16, fraction: 0.5}, {max_length: 32, fraction: 0.5, global_batch_size: 4}]"]
ELECTRA = [
    "objective.kind=replaced_token_detection",
    "model.family=electra",
    "model.config_overrides.embedding_size=32",
]


@pytest.mark.parametrize(
    ("shard_tokens", "interrupted_at", "overrides"),
    [
        pytest.param(2**25, [6], [], marks=pytest.mark.slow),
        pytest.param(700, [6], [], marks=pytest.mark.slow),
        (700, [6], ["objective.pairs=next_sentence"]),
        (700, [5, 10], ["packing=true", *TWO_PHASES]),
        (700, [6], ELECTRA),
    ],
)
def test_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    monkeypatch: pytest.MonkeyPatch, shard_tokens: int, interrupted_at: list[int], overrides: list[str]
) -> None:
    from safetensors.torch import load_file

    monkeypatch.setattr("bertcli.pretraining.batches.SHARD_TOKENS", shard_tokens)
    overrides = ["evaluation.every_steps=4", "hardware.micro_batch_size=5", *overrides]
    run(*overrides, folder="uninterrupted")
    original = PretrainJob.batches
    for stop_step in interrupted_at:

        def interrupted(
            job: PretrainJob, accelerator: Any, start_step: int, clock: RunClock, stop_step: int = stop_step
        ) -> Iterator[GlobalBatch]:
            for step, batch in enumerate(original(job, accelerator, start_step, clock), start=start_step):
                if step == stop_step:
                    raise KeyboardInterrupt
                yield batch

        monkeypatch.setattr(PretrainJob, "batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(*overrides, folder="interrupted")
    monkeypatch.setattr(PretrainJob, "batches", original)
    run(*overrides, folder="interrupted")
    weights, expected = (load_file(f"{name}/model/model.safetensors") for name in ("interrupted", "uninterrupted"))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("overrides", [["objective.pairs=next_sentence"], ["packing=true", *TWO_PHASES]])
def test_resumed_run_does_not_rebuild_earlier_shards(monkeypatch: pytest.MonkeyPatch, overrides: list[str]) -> None:
    monkeypatch.setattr("bertcli.pretraining.batches.SHARD_TOKENS", 700)
    built: list[tuple[int, int, int]] = []
    original = BatchStream.build_shard

    def recorded(stream: BatchStream, documents: np.ndarray, phase: Any, epoch: int, index: int) -> Any:
        built.append((phase.max_length, epoch, index))
        if len(built) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(stream, documents, phase, epoch, index)

    monkeypatch.setattr(BatchStream, "build_shard", recorded)
    overrides = ["training.max_steps=40", "evaluation.every_steps=40", *overrides]
    with pytest.raises(Interrupted):
        run(*overrides)
    before = list(built)
    assert len(before) in (5, 6)  # the fifth may be in use, while the sixth is prefetched
    run(*overrides)
    after = built[len(before) :]
    assert after[0] in before[-3:]
    assert after == sorted(set(after), key=after.index)  # none twice
    assert len({*before, *after}) >= len(built) - 3


def test_pretraining_is_not_resumed_on_a_changed_corpus(stop_after: Callable[..., None]) -> None:
    overrides = ["training.max_steps=4", "evaluation.every_steps=4"]
    stop_after(2)
    with pytest.raises(Interrupted):
        run(*overrides)
    text = Path("corpus.txt").read_text("utf-8")
    first, second, rest = text.split("\n\n", 2)
    Path("corpus.txt").write_text(f"{second}\n\n{first}\n\n{rest}", "utf-8")
    with pytest.raises(RunFolderError, match="data have changed since step 2"):
        run(*overrides)
    Path("corpus.txt").write_text(text, "utf-8")
    run(*overrides)


@pytest.mark.parametrize("sections", [{}, {"objective": "{pairs: next_sentence}"}])
def test_plan_counts_the_steps_of_weighted_sources_and_of_pairs(sections: dict[str, str]) -> None:
    Path("other.txt").write_text("\n\n".join(sample_documents(100)))
    corpus = "{sources: [{files: corpus.txt, weight: 0.5}, {files: other.txt, weight: 3}]}"
    setup = set_up(small_recipe(corpus=corpus, **sections), None, QUIET)
    plan, (phase,) = resolve_phases(setup.recipe, setup)
    stream = BatchStream(setup.recipe, setup.corpus, setup.train, setup.objective, seed=1)
    endless: Any = SimpleNamespace(share=lambda step: 0.0)
    for _ in stream.batches(phase, 0, endless, micro_batch_size=16, process=0, num_processes=1, multiple_of=1):
        epoch, _, first_step = stream.position
        if epoch == 1:
            break
    assert plan.steps_per_epoch == pytest.approx(first_step, rel=0.05)


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"model": "{family: brt}"}, ModelError, "Did you mean bert"),
        ({"model": "{config_overrides: {hiden_size: 3}}"}, ModelError, "Did you mean hidden_size"),
        ({"model": "{name: nowhere}", "tokenizer": "{name: nowhere}"}, ModelError, "cannot load"),
        ({"corpus": "{sources: [{files: gone.txt}]}"}, DataError, "found no file"),
        ({"corpus": "{sources: []}"}, RecipeError, "expected at least 1"),
        ({"corpus": "{sources: [{files: a, dataset: b}]}"}, RecipeError, "either `files` or `dataset`"),
        ({"phases": "[{max_length: 32, fraction: 0.5}]"}, RecipeError, "must add up to 1, found 0.5"),
        ({"objective": "{unit: words}"}, RecipeError, "unknown key 'unit'.*Did you mean objective.masking"),
        ({"packing": "true", "objective": "{kind: replaced_token_detection}"}, RecipeError, "`packing` requires"),
        ({"packing": "true", "objective": "{pairs: next_sentence}"}, RecipeError, "remove one of them"),
        ({"training": "{max_steps: 5, warmup_steps: 6}"}, RecipeError, "expected at most 5, the number"),
        (
            {"training": "{budget: 30min}"},
            RecipeError,
            "found '30min' for training.budget, expected a time such as 90s",
        ),
        ({"training": "{budget: 0s}"}, RecipeError, "found '0s' for training.budget"),
        (
            {
                "model": f"{{family: roberta, size: null, config_overrides: {SMALL}}}",
                "objective": "{pairs: next_sentence}",
            },
            ModelError,
            "roberta models have no head for sentence pairs",
        ),
        ({"evaluation": "{best_by: acuracy}"}, RecipeError, "Did you mean accuracy"),
        (
            {"training": "{label_smoothing: 0.1}"},
            RecipeError,
            "found key 'label_smoothing' .* only recipes for `bertcli finetune` have",
        ),
        ({"objective": "{kind: causal_lm, pairs: next_sentence}"}, RecipeError, "requires the objective masked_lm"),
        ({"objective": "{kind: causal_lm, masking: whole_word}"}, RecipeError, "causal_lm does not use masking"),
        ({"objective": "{generator_size: 0.5, mean_span_length: 2}"}, RecipeError, "generator_size, mean_span_length"),
        ({"objective": "{short_seq_prob: 0.5}"}, RecipeError, "requires `pairs`"),
    ],
)
def test_invalid_recipe_is_rejected_in_one_message_before_the_run_folder_exists(
    sections: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(**sections)
    assert not Path("run").exists()


def test_vocabulary_too_large_for_the_corpus_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small_recipe("training.max_steps=1", tokenizer="{vocab_size: 30000}")
    pretrain(recipe, Path("run"), RunOptions(console=Console()))
    warning = re.search(
        r"the corpus is too small for 30016 vocabulary entries; the tokenizer has (\d+)", capsys.readouterr().err
    )
    assert warning is not None
    assert json.loads(Path("run/model/config.json").read_text())["vocab_size"] == -(-int(warning[1]) // 64) * 64


def test_document_of_one_very_long_line_is_tokenized_completely() -> None:
    line = " ".join(document.replace("\n", " ") for document in sample_documents(400))
    Path("corpus.txt").write_text(f"{line}\n\na second document .")
    setup = set_up(small_recipe(), None, QUIET)
    ids = setup.tokenizer(line, add_special_tokens=False, verbose=False)["input_ids"]
    assert setup.corpus.tokens[: setup.corpus.document_offsets[1]].tolist() == ids


def test_tokenizer_without_a_mask_token_is_rejected() -> None:
    tokenizer = train_tokenizer(lambda: sample_documents(20), 400, "bpe")
    tokenizer.mask_token = None
    tokenizer.save_pretrained("no-mask-token")
    with pytest.raises(ModelError, match="no mask token"):
        run(tokenizer="{name: ./no-mask-token}")


@pytest.mark.parametrize("sections", [{}, {"tokenizer": "{kind: bpe, vocab_size: 400}", "packing": "true"}])
def test_dry_run_neither_trains_a_tokenizer_nor_tokenizes_the_corpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sections: dict[str, str]
) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(Path("cache").resolve()))
    results = pretrain(small_recipe(**sections), Path("run"), RunOptions(dry_run=True, console=Console()))
    assert results.dry_run
    assert {path.name for path in Path().iterdir()} == {"corpus.txt", "recipe.yaml"}
    printed = capsys.readouterr().err
    assert "to be tokenized" in printed
    assert "to be trained on the corpus" in printed


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"model": "{name: nowhere/none}", "tokenizer": "{}"}, ModelError, "cannot load"),
        ({"model": "{name: none, family: t5}", "tokenizer": "{}"}, RecipeError, "model.family has no effect"),
        ({"tokenizer": "{name: ./none}"}, ModelError, "found no folder ./none"),
        ({"corpus": "{sources: [{files: gone.txt}]}"}, DataError, "found no file"),
        ({"corpus": "{sources: [{files: empty.txt}]}"}, DataError, "non-empty documents in the corpus, found 0"),
        ({"training": "{max_steps: 4, warmup_steps: 9}"}, RecipeError, "warmup_steps is 9, expected at most 4"),
        ({"tokenizer": "{vocab_size: 1000000000000}"}, RecipeError, "at most 2000000"),
        ({"phases": "[{max_length: 1000000000}]"}, RecipeError, "at most 1000000"),
        ({"model": "{config_overrides: {hidden_size: 33, num_attention_heads: 2}}"}, ModelError, "not a multiple"),
        ({"model": "{config_overrides: {hidden_size: 0}}"}, ModelError, "change model.config_overrides"),
        ({"model": "{config_overrides: {hidden_size: 1.5}}"}, ModelError, "change model.config_overrides"),
        ({"model": "{config_overrides: {hidden_act: foo}}"}, ModelError, "KeyError: 'foo'"),
        ({"model": "{config_overrides: {num_hidden_layers: -1}}"}, RecipeError, "expected at least 0"),
        ({"model": "{config_overrides: {hidden_size: 9600000}}"}, DiskError, "the run needs up to"),
        ({"model": "{family: t5}"}, ModelError, "t5 has no model for masked lm"),
    ],
)
def test_dry_run_rejects_what_a_run_would_reject(
    sections: dict[str, str], error: type[Exception], message: str
) -> None:
    Path("empty.txt").write_text("\n\n")
    with pytest.raises(error, match=message):
        pretrain(small_recipe(**sections), Path("run"), RunOptions(dry_run=True, console=QUIET))
    assert not Path("run").exists()


@pytest.mark.parametrize(("kind", "warns"), [("wordpiece", True), ("bpe", False)])
def test_share_of_unknown_tokens_is_reported_and_a_large_one_warned_of(
    capsys: pytest.CaptureFixture[str], kind: str, warns: bool
) -> None:
    signs = [chr(0x4E00 + number) for number in range(600)]
    Path("corpus.txt").write_text("\n\n".join("".join(signs[at : at + 20]) for at in range(0, 600, 20)), "utf-8")
    recipe = small_recipe("training.max_steps=1", tokenizer=f"{{kind: {kind}, vocab_size: 384}}")
    results = pretrain(recipe, Path("run"), RunOptions(console=Console()))
    printed = " ".join(capsys.readouterr().err.split())
    assert results.unknown_token_share == pytest.approx(221 / 600 if warns else 0, abs=0.01)
    assert ("of the corpus tokens are unknown ([UNK]); set tokenizer.kind=bpe" in printed) == warns
    assert f"{results.unknown_token_share:.2%} of the tokens are unknown" in printed


def test_file_without_empty_lines_is_read_line_by_line_and_that_is_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("corpus.txt").write_text("\n".join(document.replace("\n", " ") for document in sample_documents(300)))
    setup = set_up(small_recipe(), None, Console())
    assert len(setup.corpus.document_offsets) == 301
    assert "corpus.txt has no empty lines: each line is a document" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("dry_run", [True, False])
def test_pretraining_from_a_model_whose_configuration_cannot_be_used_names_its_file(
    encoder: Path, dry_run: bool
) -> None:
    shutil.copytree(encoder, "base")
    config = json.loads(Path("base/config.json").read_text())
    Path("base/config.json").write_text(json.dumps(config | {"hidden_act": "foo"}))
    recipe = small_recipe(model="{name: base}", tokenizer="{name: base}")
    with pytest.raises(ModelError, match=r"^the config\.json of base cannot be used \(KeyError: 'foo'\); correct or"):
        pretrain(recipe, Path("run"), RunOptions(console=QUIET, dry_run=dry_run))
