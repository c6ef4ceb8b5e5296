"""The estimate of memory is near what training measurably uses, and decides about gradient checkpointing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from bertcli.console import Console
from bertcli.errors import ModelError
from bertcli.finetuning.run import finetune
from bertcli.finetuning.setup import set_up
from bertcli.recipe.plan import make_plan
from bertcli.recipe.schema import HardwareSection, Recipe
from bertcli.runs.folder import RunOptions
from bertcli.training import memory
from bertcli.training.memory import Workload, activation_bytes, container_memory, plan_memory

from ..conftest import QUIET
from ..models.test_gradient_checkpointing import build, step

CLASSIFIER = "AutoModelForSequenceClassification"
GIGABYTE = 10**9


def workload(num_sequences: int = 32, length: int = 128, **fields: Any) -> Workload:
    config = transformers.BertConfig(**fields)
    return Workload(config, 110_000_000, 110_000_000, num_sequences, length)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "modernbert", "deberta-v2", "eurobert"])
def test_estimate_is_near_the_bytes_that_a_step_keeps(family: str, dropout: float) -> None:
    from bertcli.models.padding_free import optimize_forward

    model: Any = build(family, "TokenClassification", dropout)
    optimize_forward(model, next(model.parameters()).device)
    kept = step(model, "TokenClassification", (96,) * 4)[3]
    estimate = activation_bytes(Workload(model.config, 0, 0, 4, 96), "fp32", on_cpu=True)
    assert 0.5 < estimate / kept < 2


def test_published_activation_memory_of_a_layer() -> None:
    """Korthikanti et al. 2022: 34 bytes per token and hidden unit in half precision, with one-byte masks."""
    fields = {"num_attention_heads": 12, "hidden_size": 768, "intermediate_size": 3072}
    sizes = [
        activation_bytes(workload(1, 512, num_hidden_layers=layers, **fields), "bf16", on_cpu=False)
        for layers in (12, 13)
    ]
    assert (sizes[1] - sizes[0]) / 512 / 768 == pytest.approx(34)


def test_checkpointing_keeps_one_input_per_layer() -> None:
    def size(layers: int, *, checkpointing: bool) -> float:
        work = workload(1, 512, num_hidden_layers=layers)
        return activation_bytes(work, "fp32", on_cpu=False, checkpointing=checkpointing)

    assert size(13, checkpointing=True) - size(12, checkpointing=True) == 512 * 768 * 4
    assert size(12, checkpointing=True) < 0.3 * size(12, checkpointing=False)


@pytest.mark.parametrize(("gigabytes", "is_on"), [(100, False), (5, True)])
def test_auto_uses_checkpointing_if_a_step_would_not_fit(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, is_on: bool
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda *_: gigabytes * GIGABYTE)
    plan = plan_memory(HardwareSection(device="cpu"), CLASSIFIER, workload(64, 256))
    assert plan.gradient_checkpointing == is_on
    forced = HardwareSection(device="cpu", gradient_checkpointing=not is_on)
    assert plan_memory(forced, CLASSIFIER, workload(64, 256)).gradient_checkpointing != is_on


def test_smaller_micro_batches_are_preferred_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "uses_cpu", lambda _: False)
    monkeypatch.setattr(memory, "choose_precision", lambda _: "bf16")
    monkeypatch.setattr(memory, "available_memory", lambda *_: 8 * GIGABYTE)
    many, long = workload(256, 256), workload(4, 32_768)
    assert not plan_memory(HardwareSection(), CLASSIFIER, many).gradient_checkpointing
    assert plan_memory(HardwareSection(micro_batch_size=256), CLASSIFIER, many).gradient_checkpointing
    assert plan_memory(HardwareSection(), CLASSIFIER, long).gradient_checkpointing


def test_unsupported_families_are_refused_for_true_and_ignored_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda *_: 1)
    albert = Workload(transformers.AlbertConfig(), 10**7, 10**7, 32, 128)
    assert not plan_memory(HardwareSection(device="cpu"), CLASSIFIER, albert).gradient_checkpointing
    with pytest.raises(ModelError, match="but albert models in transformers do not support it"):
        plan_memory(HardwareSection(device="cpu", gradient_checkpointing=True), CLASSIFIER, albert)


@pytest.mark.parametrize("family", ["fnet", "perceiver", "t5", "gpt2", "xlnet", "reformer", "canine", "mobilebert"])
def test_every_family_has_a_plan(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    work = Workload(transformers.AutoConfig.for_model(family), 10**9, 10**9, 4, 64)
    plan_memory(HardwareSection(device="cpu"), CLASSIFIER, work).report(Console())
    is_unknown = family == "perceiver"
    assert ("activations unknown" in capsys.readouterr().err) == is_unknown


def test_plan_states_the_memory_and_warns_if_it_does_not_suffice(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda *_: 1000)
    finetune(recipe_of(), Path("run"), RunOptions(console=Console(), dry_run=True))
    printed = capsys.readouterr().err
    line = r"^memory    about \d MB: weights 0, gradients 0, optimizer 0, activations 0 with gradient checkpointing$"
    assert re.search(line, printed, re.MULTILINE)
    assert re.search(r"warning: training needs about \S+ \S+ of memory, but only 1 kB are available; lower", printed)


@pytest.mark.parametrize(
    ("overrides", "layers", "is_all"),
    [
        ([], None, True),
        (["training.freeze_layers=1"], 1, False),
        (["training.strategy=features"], 0, False),
        (["training.strategy=gradual"], 2, True),
        (["training.freeze_embeddings=true"], 2, False),
        (["training.strategy=lora"], None, False),
    ],
)
def test_frozen_layers_keep_no_activations(
    recipe_of: Callable[..., Recipe], overrides: list[str], layers: int | None, is_all: bool
) -> None:
    recipe = recipe_of(*overrides)
    setup = set_up(recipe, None)
    work = setup.workload(make_plan(recipe, 36))
    assert work.num_layers == layers
    assert (work.num_trainable == work.num_parameters) == is_all
    assert (work.num_sequences, work.length) == (7, int(max(setup.encode("train").lengths)))


@pytest.mark.parametrize(("version", "limit"), [(1, "memory.limit_in_bytes"), (2, "memory.max")])
def test_container_memory_is_the_smallest_limit_of_its_groups(tmp_path: Path, version: int, limit: str) -> None:
    usage, cached = {1: ("memory.usage_in_bytes", "total_inactive_file"), 2: ("memory.current", "inactive_file")}[
        version
    ]
    top = tmp_path / "memory" if version == 1 else tmp_path
    for folder, size in (
        (top, "max" if version == 2 else str(2**63 - 1)),
        (top / "job", "900"),
        (top / "job/1", "9999"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(f"{size}\n")
        (folder / usage).write_text("500\n")
        (folder / "memory.stat").write_text(f"cache 7\n{cached} 100\n")
    (tmp_path / "membership").write_text("4:memory:/job/1\n2:cpu:/x\n" if version == 1 else "0::/job/1\n")
    assert container_memory(tmp_path, tmp_path / "membership") == 900 - 500 + 100
    assert container_memory(tmp_path / "none", tmp_path / "none") is None


PEAK = """
import re, sys, torch, transformers
from bertcli.models.gradient_checkpointing import checkpoint_layers
from bertcli.models.padding_free import optimize_forward
from bertcli.training.devices import prepare_batch
from bertcli.training.memory import Workload, activation_bytes
from bertcli.training.optimizer import build_optimizer

checkpointing = sys.argv[1] == "True"
rows, length = 4, 512
config = transformers.BertConfig(num_hidden_layers=4, hidden_size=384, intermediate_size=1536, num_attention_heads=6,
                                 vocab_size=1000, attention_probs_dropout_prob=0.0)
def peak():  # unlike ru_maxrss, it does not begin at the peak of the process that started this one
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024
model = transformers.BertForTokenClassification(config)
optimize_forward(model, torch.device("cpu"))
if checkpointing:
    checkpoint_layers(model)
optimizer = build_optimizer(model, learning_rate=1e-4, weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8)
def step(rows, length):
    ids = torch.randint(5, 1000, (rows, length))
    batch = prepare_batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, model, torch.device("cpu"))
    model(**batch).logits.square().mean().backward()
    optimizer.step(); optimizer.zero_grad()
step(1, 8)
before = peak()
step(rows, length)
estimate = activation_bytes(Workload(config, 0, 0, rows, length), "fp32", on_cpu=True, checkpointing=checkpointing)
print((peak() - before) / estimate)
"""


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_estimate_is_within_a_factor_of_two_of_the_measured_peak(checkpointing: bool) -> None:
    command = [sys.executable, "-c", PEAK, str(checkpointing)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 0.5 < float(output) < 2


def test_resumed_run_may_change_checkpointing(
    recipe_of: Callable[..., Recipe], stop_after: Callable[..., None]
) -> None:
    import torch
    from safetensors.torch import load_file

    from bertcli.errors import Interrupted

    finetune(recipe_of("model.dropout=0.1"), Path("uninterrupted"), RunOptions(console=QUIET))
    stop_after(3)
    with pytest.raises(Interrupted):
        finetune(recipe_of("model.dropout=0.1"), Path("run"), RunOptions(console=QUIET))
    recipe = recipe_of("model.dropout=0.1", "hardware.gradient_checkpointing=true")
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    expected = load_file("uninterrupted/model/model.safetensors")
    assert all(torch.equal(expected[name], part) for name, part in load_file("run/model/model.safetensors").items())
