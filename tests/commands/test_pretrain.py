"""Pretraining: to a model that plain transformers loads and fine-tuning starts from; a stopped run resumes."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from bertcli.commands import pretrain as pretraining
from bertcli.commands.evaluate import evaluate
from bertcli.commands.predict import predict
from bertcli.commands.pretrain import pretrain
from bertcli.console import Console
from bertcli.data.packing import pack
from bertcli.data.sample import PLAIN, sample_documents
from bertcli.errors import DataError, Interrupted, ModelError, RecipeError, TrainingError, UsageError
from bertcli.finetuning.run import finetune
from bertcli.inference.fill_mask import fills_masks
from bertcli.models.from_pretrained import first_position, load_tokenizer
from bertcli.models.from_scratch import build_config, build_from_config
from bertcli.pretraining.batches import Feed, texts_of
from bertcli.pretraining.setup import plan_stages, prepare
from bertcli.recipe.load import load_pretrain_recipe, load_recipe
from bertcli.recipe.pretrain_schema import ArchitectureSection
from bertcli.runs.folder import RunOptions
from bertcli.training import trainer as train_module
from bertcli.training.devices import on_device

from ..conftest import HARMS

QUIET = Console(quiet=True)
SMALL = "{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64}"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    Path("corpus.txt").write_text("\n\n".join(sample_documents(400)))


def recipe(*overrides: str, **sections: str) -> Any:
    text = {
        "corpus": "{sources: [{files: corpus.txt}], held_out_share: 0.1}",
        "tokenizer": "{vocabulary_size: 500}",
        "model": f"{{size: null, fields: {SMALL}}}",
        "phases": "[{max_length: 32}]",
        "training": "{max_steps: 12, global_batch_size: 16, learning_rate: 3e-3}",
    } | sections
    Path("recipe.yaml").write_text("".join(f"{key}: {value}\n" for key, value in text.items()))
    return load_pretrain_recipe("recipe.yaml", overrides)


def run(*overrides: str, folder: str = "run", **sections: str) -> dict[str, Any]:
    return pretrain(recipe(*overrides, **sections), Path(folder), RunOptions(console=QUIET))


def test_it_learns_and_plain_transformers_reads_the_model() -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    random = Random(0)
    Path("corpus.txt").write_text("\n\n".join(" . ".join(random.choices(PLAIN, k=4)) for _ in range(400)))
    results = run("training.max_steps=160", "evaluation.every_steps=80", "training.learning_rate=5e-3")
    scores = results["metrics"]["validation"]
    assert scores["loss"] < results["unigram_entropy"] - 0.3
    assert scores["perplexity"] == pytest.approx(torch.tensor(scores["loss"]).exp().item(), rel=1e-5)
    assert evaluate("run", console=QUIET)["metrics"]["validation"] == pytest.approx(scores, rel=1e-6)
    model, report = AutoModelForMaskedLM.from_pretrained("run/model", output_loading_info=True)
    assert not report["missing_keys"]
    assert model.config.vocab_size % 64 == 0
    tokenizer = AutoTokenizer.from_pretrained("run/model")
    assert len(tokenizer) <= model.config.vocab_size
    assert {path.name for path in Path("run").iterdir()} >= {"recipe.yaml", "train.jsonl", "results.json", "README.md"}


def test_a_pretrained_model_fills_masks_as_plain_transformers_does() -> None:
    from transformers import pipeline

    run("training.max_steps=20")
    texts = ["anna saw the [MASK] .", "the [MASK] was [MASK] ."]
    predict("run", [[text] for text in texts], "out.jsonl", top_k=3, console=QUIET)
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [answer["text"] for answer in found] == texts
    fill = pipeline("fill-mask", model="run/model", top_k=3)
    expected = [[fill(texts[0])], fill(texts[1])]
    for answer, masks in zip(found, expected, strict=True):
        assert [[one["token"] for one in mask] for mask in answer["masks"]] == [
            [one["token_str"] for one in mask] for mask in masks
        ]
        for ours, theirs in zip(answer["masks"], masks, strict=True):
            assert [one["probability"] for one in ours] == pytest.approx([one["score"] for one in theirs], abs=1e-4)
    with pytest.raises(DataError, match=r"row 2 has no \[MASK\]"):
        predict("run", [[texts[0]], ["nothing to fill"]], "more.jsonl", console=QUIET)
    with pytest.raises(DataError, match=r"row 1 has 2 \[MASK\], of which only 1 are among its first"):
        predict("run", [["a [MASK] " + "word " * 600 + "[MASK]"]], "far.jsonl", console=QUIET)
    for asked, option in (
        ({"split": "test"}, "--split"),
        ({"format_name": "squad"}, "--format squad"),
        ({"values": [["a [MASK]", "b"]]}, "--pair"),
    ):
        with pytest.raises(UsageError, match=f"fills the masks of single texts and has no use for {option}"):
            predict("run", **{"values": [[texts[0]]], "output": "none", **asked}, console=QUIET)


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_vocabulary_in_the_cache_is_learned_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(Path("cache").resolve()))
    before = prepare(recipe(), None, QUIET).tokenizer.get_vocab()
    (file,) = Path("cache/tokenizers").glob("*/tokenizer.json")
    HARMS[harm](file)
    assert prepare(recipe(), None, QUIET).tokenizer.get_vocab() == before
    told = capsys.readouterr().err.replace("\n", "")
    assert "is damaged (tokenizer.json" in told
    assert file.parent.name in told


def test_a_score_that_is_no_number_stops_the_run_and_is_never_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    steps_of = train_module.train_steps

    def spoiling(accelerator: Any, model: torch.nn.Module, *args: Any, **options: Any) -> Any:
        for record in steps_of(accelerator, model, *args, **options):
            if record.step == 4:
                next(model.parameters()).data.fill_(float("nan"))
            yield record

    monkeypatch.setattr(train_module, "train_steps", spoiling)
    with pytest.raises(TrainingError, match="numbers that are not finite"):
        run("training.max_steps=8", "evaluation.every_steps=4")
    assert not Path("run/model").exists()


def test_a_finished_run_is_read_without_its_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    results = run("training.max_steps=2")
    wanted = recipe("training.max_steps=2")
    Path("corpus.txt").unlink()
    assert pretrain(wanted, Path("run"), RunOptions(console=Console())) == results
    assert "run is finished; its results stand" in capsys.readouterr().err


def test_fine_tuning_starts_from_the_run_folder() -> None:
    run()
    words = ["model.name=run", "training.max_steps=2", "data.max_train_examples=40", "data.max_length=32"]
    results = finetune(load_recipe("sample/sentiment", words), Path("tuned"), RunOptions(console=QUIET))
    assert 0 <= results["metrics"]["validation"]["accuracy"] <= 1


@pytest.mark.parametrize("pairs", ["next_sentence", "sentence_order"])
def test_pairs_are_told_apart_beside_the_masked_tokens(pairs: str) -> None:
    from transformers import BertForPreTraining

    results = run(objective=f"{{pairs: {pairs}, unit: words}}")
    assert set(results["metrics"]["validation"]) == {"accuracy", "loss", "pair_accuracy", "perplexity"}
    assert json.loads(Path("run/model/config.json").read_text())["architectures"] == ["BertForPreTraining"]
    BertForPreTraining.from_pretrained("run/model")


@pytest.mark.parametrize(
    ("family", "kind", "unit"),
    [
        ("roberta", "bpe", "spans"),
        ("electra", "unigram", "words"),
        ("distilbert", "wordpiece", "tokens"),
        ("modernbert", "bpe", "tokens"),
    ],
)
def test_other_families_and_vocabularies(family: str, kind: str, unit: str) -> None:
    fields = "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2}"
    results = run(
        "training.max_steps=3",
        model=f"{{family: {family}, size: null, fields: {fields}}}",
        tokenizer=f"{{kind: {kind}, vocabulary_size: 500}}",
        objective=f"{{unit: {unit}}}",
    )
    assert results["family"] == family
    assert torch.isfinite(torch.tensor(results["metrics"]["validation"]["loss"]))


def test_documents_of_single_sentences_make_no_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, is_told in (("lines", True), ("blocks", False)):
        Path("corpus.txt").write_text("\n\n".join("a film .\nthe soup was awful .\nbad day ." for _ in range(200)))
        corpus = f"{{sources: [{{files: corpus.txt, documents: {kind}}}], held_out_share: 0.1}}"
        prepare(recipe(corpus=corpus, objective="{pairs: next_sentence}"), None, Console())
        assert (
            "of the pairs are in order, since most documents are one sentence" in capsys.readouterr().err
        ) == is_told


def test_albert_tells_the_order_of_sentences() -> None:
    fields = SMALL.replace("}", ", embedding_size: 16}")
    results = run(model=f"{{family: albert, size: null, fields: {fields}}}", objective="{pairs: sentence_order}")
    assert 0 <= results["metrics"]["validation"]["pair_accuracy"] <= 1


@pytest.mark.parametrize("family", ["roberta", "mpnet"])
def test_a_fresh_model_reads_as_many_tokens_as_its_phases_have(encoder: Path, family: str) -> None:
    tokenizer = load_tokenizer(str(encoder), None)
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = build_config(ArchitectureSection(family=family, size=None, fields=fields), tokenizer, 40)
    model = build_from_config(config, "AutoModelForMaskedLM")
    assert model(torch.full((1, 40), 5)).logits.shape[1] == 40


def test_the_next_token_is_guessed_without_seeing_it() -> None:
    from transformers import AutoModelForCausalLM

    model = "{family: gpt2, size: null, fields: {n_embd: 32, n_layer: 2, n_head: 2}}"
    run(model=model, tokenizer="{kind: bpe, vocabulary_size: 500}", objective="{kind: causal_lm}")
    module = AutoModelForCausalLM.from_pretrained("run/model").eval()
    ids = torch.tensor([[9, 10, 11, 12]])
    changed = torch.tensor([[9, 10, 11, 99]])
    with torch.inference_mode():
        assert torch.allclose(module(ids).logits[0, :3], module(changed).logits[0, :3], atol=1e-5)


def test_replaced_tokens_are_found_and_only_the_discriminator_is_kept() -> None:
    from transformers import AutoModelForPreTraining, ElectraForPreTraining

    fields = "{hidden_size: 32, embedding_size: 32, num_hidden_layers: 2, num_attention_heads: 4}"
    results = run(
        "training.max_steps=80",
        model=f"{{family: electra, size: null, fields: {fields}}}",
        objective="{kind: replaced_tokens, discriminator_weight: 5}",
    )
    scores = results["metrics"]["validation"]
    assert set(scores) == {"loss", "accuracy", "generator_loss", "generator_accuracy"}
    assert scores["generator_loss"] < 6.2  # below the ln 500 of knowing nothing
    model, report = AutoModelForPreTraining.from_pretrained("run/model", output_loading_info=True)
    assert isinstance(model, ElectraForPreTraining)
    assert not report["missing_keys"]
    assert not any("generator" in name for name in model.state_dict())
    with pytest.raises(ModelError, match="expected electra"):
        run(objective="{kind: replaced_tokens}", folder="other")
    with pytest.raises(ModelError, match="tells replaced tokens and fills no masks"):
        fills_masks("run", None)


def test_lost_spans_are_said_again_by_an_encoder_decoder() -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    fields = "{d_model: 32, d_kv: 8, d_ff: 64, num_layers: 1, num_decoder_layers: 1, num_heads: 4}"
    results = run(
        "training.max_steps=60",
        model=f"{{family: t5, size: null, fields: {fields}}}",
        tokenizer="{kind: unigram, vocabulary_size: 500}",
        objective="{kind: span_corruption}",
    )
    assert results["metrics"]["validation"]["loss"] < 5.5
    model, tokenizer = (auto.from_pretrained("run/model") for auto in (AutoModelForSeq2SeqLM, AutoTokenizer))
    assert "<extra_id_0>" in tokenizer.get_vocab()
    ids = tokenizer("anna saw the <extra_id_0> .", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=3).shape[1] <= 4


def test_training_goes_on_from_a_model_with_its_tokenizer() -> None:
    first = run("training.max_steps=40", folder="first")
    second = run(
        "training.max_steps=2", "training.learning_rate=1e-9", folder="second", model="{name: first}", tokenizer="{}"
    )
    assert second["vocabulary"] == first["vocabulary"]
    before, after = (result["metrics"]["validation"]["loss"] for result in (first, second))
    assert after == pytest.approx(before, abs=1e-4)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_a_packed_batch_has_the_loss_of_each_document_alone(family: str) -> None:
    import numpy as np

    fields = "{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}"
    wanted = recipe(model=f"{{family: {family}, size: null, fields: {fields}}}", phases="[{max_length: 64}]")
    prepared = prepare(wanted, None, QUIET)
    objective, ranges = prepared.objective, prepared.held_out
    texts = texts_of(prepared.corpus, ranges, np.arange(24))
    alone = objective.ask(texts, np.random.default_rng(0))
    rows = pack(alone.sizes, 64)
    assert len(rows) < 24
    packed = alone.packed(rows, first_position(prepared.config))
    torch.manual_seed(0)
    model = build_from_config(prepared.config, objective.model_class).eval()

    def losses(asked: Any, items: np.ndarray) -> list[list[float]]:
        """The loss of each asked token of each row."""
        batch = on_device(asked.batch(items), model, torch.device("cpu"))
        del batch["labels"], batch["asked"]
        with torch.inference_mode():
            logits = model(**batch).logits
        labels = asked.batch(items)["labels"]
        values = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return [values.view(labels.shape)[row][labels[row] != -100].tolist() for row in range(len(items))]

    each = losses(alone, np.arange(24))
    for row, found in zip(rows, losses(packed, np.arange(len(rows))), strict=True):
        assert found == pytest.approx([value for sequence in row for value in each[sequence]], abs=1e-4)


def test_packing_trains_and_a_family_that_cannot_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bertcli.console.SECONDS_BETWEEN_LINES", 0.0)
    results = run("packing=true", "training.max_steps=3", phases="[{max_length: 256}]")
    assert results["padding_share"] < 0.1
    model = "{family: distilbert, size: null, fields: {dim: 32, n_layers: 1, n_heads: 2}}"
    pretrain(recipe("packing=true", "training.max_steps=2", model=model), Path("other"), RunOptions(console=Console()))
    told = " ".join(capsys.readouterr().err.split())
    assert "distilbert cannot keep packed sequences apart" in told
    assert re.search(r"step 2/2 evaluating [1-9]", told)


def test_phases_follow_each_other_with_their_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    original = pretraining.PretrainJob.batches

    def watched(self: Any, accelerator: Any, start_step: int, clock: Any) -> Any:
        for batch in original(self, accelerator, start_step, clock):
            seen.append((batch.num_examples, max(micro["input_ids"].shape[1] for micro in batch.micro_batches)))
            yield batch

    monkeypatch.setattr(pretraining.PretrainJob, "batches", watched)
    run(phases="[{max_length: 16, share: 0.75}, {max_length: 64, share: 0.25, global_batch_size: 4}]")
    assert len(seen) == 12
    assert all(number == 16 and length <= 16 for number, length in seen[:9])
    assert all(number == 4 and length <= 64 for number, length in seen[9:])
    assert max(length for _, length in seen[9:]) > 16


def test_a_run_by_the_clock_ends_in_time_with_its_schedule() -> None:
    import time

    started = time.monotonic()
    results = run("training.budget=2s", "training.max_steps=100000", "evaluation.every_epochs=null")
    assert time.monotonic() - started < 15
    assert 5 < results["total_steps"] < 100000
    lines = [json.loads(line) for line in Path("run/train.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines]
    assert rates[-1] < 0.2 * max(rates)
    assert run("training.budget=2s", "training.max_steps=100000", "evaluation.every_epochs=null") == results


@pytest.mark.parametrize(("asked", "expected"), [("null", [1, 1, 1, 1, 1]), ("4", [0.25, 0.5, 0.75, 1, 1])])
def test_a_run_by_the_clock_warms_up_for_as_many_steps_as_asked(asked: str, expected: list[float]) -> None:
    warmup = [f"training.warmup_steps={asked}", "training.schedule=constant"]
    run("training.budget=60s", "training.max_steps=6", *warmup, "hardware.log_every_steps=1")
    rates = [json.loads(line)["learning_rate"] for line in Path("run/train.jsonl").read_text().splitlines()]
    assert [rate / 3e-3 for rate in rates[1:]] == pytest.approx(expected)


def test_a_learned_tokenizer_says_how_much_the_model_reads() -> None:
    run("training.max_steps=1", phases="[{max_length: 600}]")
    assert json.loads(Path("run/model/tokenizer_config.json").read_text())["model_max_length"] == 600
    with pytest.raises(ModelError, match="found a phase of 700 tokens, but run reads 600 at most"):
        run("training.max_steps=1", model="{name: run}", phases="[{max_length: 700}]", folder="longer")


PHASES = ["phases=[{max_length: 16, share: 0.5}, {max_length: 32, share: 0.5, global_batch_size: 4}]"]
REPLACED = ["objective.kind=replaced_tokens", "model.family=electra", "model.fields.embedding_size=32"]


@pytest.mark.parametrize(
    ("tokens_at_once", "stops", "more"),
    [
        (2**25, [6], []),
        (700, [6], []),
        (700, [6], ["packing=true"]),
        (700, [6], ["objective.pairs=next_sentence"]),
        (700, [5, 10], PHASES),
        (700, [6], REPLACED),
    ],
)
def test_a_stopped_run_ends_where_an_undisturbed_one_ends(
    monkeypatch: pytest.MonkeyPatch, tokens_at_once: int, stops: list[int], more: list[str]
) -> None:
    from safetensors.torch import load_file

    monkeypatch.setattr("bertcli.pretraining.batches.TOKENS_AT_ONCE", tokens_at_once)
    options = ["evaluation.every_steps=4", "hardware.micro_batch_size=5", *more]
    run(*options, folder="whole")
    original = pretraining.PretrainJob.batches

    def cut(self: Any, accelerator: Any, start_step: int, clock: Any) -> Any:
        for number, batch in enumerate(original(self, accelerator, start_step, clock), start=start_step):
            if number == stops[0]:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(pretraining.PretrainJob, "batches", cut)
    while stops:
        with pytest.raises(KeyboardInterrupt):
            run(*options, folder="stopped")
        stops = stops[1:]
    monkeypatch.setattr(pretraining.PretrainJob, "batches", original)
    run(*options, folder="stopped")
    one, two = (load_file(f"{name}/model/model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("more", [["objective.pairs=next_sentence"], ["packing=true"], PHASES])
def test_a_resumed_run_makes_no_block_again_that_is_behind_it(monkeypatch: pytest.MonkeyPatch, more: list[str]) -> None:
    monkeypatch.setattr("bertcli.pretraining.batches.TOKENS_AT_ONCE", 700)
    made: list[tuple[int, int, int]] = []
    whole = Feed._block

    def watched(self: Feed, documents: Any, stage: Any, epoch: int, number: int) -> Any:
        made.append((stage.max_length, epoch, number))
        if len(made) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, documents, stage, epoch, number)

    monkeypatch.setattr(Feed, "_block", watched)
    with pytest.raises(Interrupted):
        run("training.max_steps=40", "evaluation.every_steps=40", *more)
    before = list(made)
    assert len(before) in (5, 6)  # the fifth is in use at most, the sixth is made ahead
    run("training.max_steps=40", "evaluation.every_steps=40", *more)
    again = made[len(before) :]
    assert again[0] in before[-3:]
    assert again == sorted(set(again), key=again.index)  # none twice
    assert len({*before, *again}) >= len(made) - 3


def test_the_plan_counts_weights_and_pairs() -> None:
    Path("other.txt").write_text("\n\n".join(sample_documents(100)))
    corpus = "{sources: [{files: corpus.txt, weight: 0.5}, {files: other.txt, weight: 3}]}"
    for more in ({}, {"objective": "{pairs: next_sentence}"}):
        prepared = prepare(recipe(corpus=corpus, **more), None, QUIET)
        plan, stages = plan_stages(prepared.recipe, prepared)
        feed = Feed(prepared.recipe, prepared.corpus, prepared.train, prepared.objective, 1)
        blocks = [feed._block(documents, stages[0], 0, at) for at, documents in enumerate(feed._documents(0))]
        assert plan.steps_per_epoch == pytest.approx(sum(len(block.batches) for block in blocks), rel=0.05)


@pytest.mark.parametrize(("size", "millions"), [("base", 110), ("large", 336)])
def test_base_and_large_have_the_parameters_of_the_paper(encoder: Path, size: str, millions: int) -> None:
    """Devlin et al. 2019 say 110M and 340M; with BERT's vocabulary of 30,522 these are 109.5M and 335.1M."""
    config = build_config(ArchitectureSection(size=size), load_tokenizer(str(encoder), None), 512)
    config.vocab_size = 30522
    with torch.device("meta"):
        number = build_from_config(config, "AutoModel").num_parameters()
    assert number / 1e6 == pytest.approx(millions, abs=1)


@pytest.mark.parametrize(
    ("sections", "error", "words"),
    [
        ({"model": "{family: brt}"}, ModelError, "Did you mean bert"),
        ({"model": "{fields: {hiden_size: 3}}"}, ModelError, "Did you mean hidden_size"),
        ({"model": "{name: nowhere}", "tokenizer": "{name: nowhere}"}, ModelError, "cannot load"),
        ({"corpus": "{sources: [{files: gone.txt}]}"}, DataError, "found no file"),
        ({"corpus": "{sources: []}"}, RecipeError, "expected at least 1"),
        ({"corpus": "{sources: [{files: a, dataset: b}]}"}, RecipeError, "either `files` or `dataset`"),
        ({"phases": "[{max_length: 32, share: 0.5}]"}, RecipeError, "add up to 0.5"),
        ({"objective": "{masking: words}"}, RecipeError, "unknown key 'masking'"),
        ({"packing": "true", "objective": "{kind: replaced_tokens}"}, RecipeError, "`packing` goes with"),
        ({"packing": "true", "objective": "{pairs: next_sentence}"}, RecipeError, "leave one of them out"),
        ({"training": "{max_steps: 5, warmup_steps: 6}"}, RecipeError, "at most the 5 steps"),
        (
            {"training": "{budget: 30min}"},
            RecipeError,
            "found '30min' for training.budget, expected a time such as 90s",
        ),
        ({"training": "{budget: 0s}"}, RecipeError, "found '0s' for training.budget"),
        (
            {"model": f"{{family: roberta, size: null, fields: {SMALL}}}", "objective": "{pairs: next_sentence}"},
            ModelError,
            "models of the family roberta have no head for pairs",
        ),
        ({"evaluation": "{best_by: acuracy}"}, RecipeError, "Did you mean accuracy"),
        ({"training": "{label_smoothing: 0.1}"}, RecipeError, "unknown key 'label_smoothing'"),
        ({"objective": "{kind: causal_lm, pairs: next_sentence}"}, RecipeError, "go with the objective masked_lm"),
        ({"objective": "{kind: causal_lm, unit: words}"}, RecipeError, "causal_lm does not read unit"),
        ({"objective": "{generator_size: 0.5, mean_span_length: 2}"}, RecipeError, "generator_size, mean_span_length"),
        ({"objective": "{short_sequence_probability: 0.5}"}, RecipeError, "is for `pairs`"),
    ],
)
def test_what_does_not_fit_is_said_in_one_message(sections: dict[str, str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run(**sections)
    assert not Path("run").exists()


def test_a_vocabulary_larger_than_the_corpus_allows_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = recipe("training.max_steps=1", tokenizer="{vocabulary_size: 30000}")
    pretrain(wanted, Path("run"), RunOptions(console=Console()))
    told = re.search(
        r"the corpus gave (\d+) vocabulary entries, fewer than the 30016 asked for", capsys.readouterr().err
    )
    assert told is not None
    assert json.loads(Path("run/model/config.json").read_text())["vocab_size"] == -(-int(told[1]) // 64) * 64


def test_one_endless_line_is_learned_from_whole() -> None:
    line = " ".join(document.replace("\n", " ") for document in sample_documents(400))
    Path("corpus.txt").write_text(f"{line}\n\na second document .")
    prepared = prepare(recipe(), None, QUIET)
    whole = prepared.tokenizer(line, add_special_tokens=False, verbose=False)["input_ids"]
    assert prepared.corpus.tokens[: prepared.corpus.documents[1]].tolist() == whole


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    from bertcli.models.tokenizer_training import train_tokenizer

    tokenizer = train_tokenizer(lambda: sample_documents(20), 400, "bpe")
    tokenizer.mask_token = None
    tokenizer.save_pretrained("plain")
    with pytest.raises(ModelError, match="no mask token"):
        run(tokenizer="{name: ./plain}")
