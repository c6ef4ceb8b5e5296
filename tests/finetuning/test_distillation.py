"""Distillation: the losses, the teacher's logits and hidden states, and resuming a student's run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from bertcli.data.encoding import Encoded
from bertcli.errors import Interrupted, ModelError
from bertcli.finetuning import distillation as distillation_module
from bertcli.finetuning.distillation import load_teacher, principal_components, with_teacher_outputs
from bertcli.finetuning.loss import build_loss, distillation_loss, hidden_states_loss
from bertcli.finetuning.run import finetune
from bertcli.finetuning.setup import FinetuneSetup, set_up
from bertcli.heads.text_classification import TextClassification
from bertcli.inference.loaded_model import load_for_inference, predict_inputs
from bertcli.models.from_pretrained import ModelSource
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import Recipe, TrainingSection
from bertcli.runs.folder import RunOptions
from bertcli.training.devices import build_accelerator

from ..conftest import QUIET

HIDDEN = ("training.teacher=teacher", "training.teacher_hidden_weight=2")


def add_teacher_outputs(setup: FinetuneSetup) -> Encoded:
    """Return the training rows with the outputs of the recipe's teacher."""
    accelerator = build_accelerator(setup.recipe.hardware)
    return with_teacher_outputs(setup, setup.encode("train"), setup.build_model(QUIET), accelerator, QUIET)


def test_distillation_loss_is_the_kl_divergence_of_softened_probabilities() -> None:
    torch.manual_seed(0)
    logits, teacher_logits = torch.randn(2, 5, 3)
    expected = 0.0
    for row in range(5):
        p, q = (teacher_logits[row] / 3).softmax(-1), (logits[row] / 3).softmax(-1)
        expected += 9 * float((p * (p / q).log()).sum())
    assert float(distillation_loss(logits, teacher_logits, 3.0)) == pytest.approx(expected, rel=1e-5)
    assert float(distillation_loss(logits, logits, 3.0)) == pytest.approx(0, abs=1e-6)


def test_teacher_logits_are_its_predictions_in_the_students_label_order(
    recipe_of: Callable[..., Recipe], reviews: Path
) -> None:
    finetune(recipe_of("training.epochs=8"), Path("teacher"), RunOptions(console=QUIET))
    setup = set_up(recipe_of("task.labels=[positive, negative]", "training.teacher=teacher"), None)
    encoded = add_teacher_outputs(setup)
    logits = encoded.teacher_logits
    assert encoded.teacher_states is None
    inputs = [{"text": text} for text in setup.rows["train"]["text"]]
    teacher = load_for_inference(ModelSource("teacher"))
    expected = np.concatenate([chunk for *_, chunk in predict_inputs(teacher, teacher.task, inputs, QUIET)])
    assert logits is not None
    np.testing.assert_allclose(logits, expected[:, ::-1], atol=1e-5)
    other_labels = replace(setup, head=TextClassification("single_label", ("a", "b")))
    with pytest.raises(ModelError, match="labels do not match"):
        add_teacher_outputs(other_labels)


def transformers_cls_states(model: str, encoded: Encoded) -> np.ndarray:
    """Return the [CLS] hidden states that plain transformers computes, for each layer: [N, layers, hidden]."""
    plain = AutoModelForSequenceClassification.from_pretrained(model).eval()
    batch = encoded.batch(np.arange(len(encoded)))
    batch.pop("labels")
    with torch.inference_mode():
        hidden = plain(**batch, output_hidden_states=True).hidden_states
    return torch.stack([layer[:, 0] for layer in hidden[1:]], 1).numpy()


def test_teacher_states_of_the_students_size_are_not_projected(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(recipe_of("training.max_steps=2"), Path("teacher"), RunOptions(console=QUIET))
    setup = set_up(recipe_of(*HIDDEN), None)
    encoded = setup.encode("train")
    states = add_teacher_outputs(setup).teacher_states
    assert states is not None
    np.testing.assert_allclose(states, transformers_cls_states("teacher/model", encoded), atol=5e-3)
    monkeypatch.setattr(distillation_module, "compute_logits", None)  # the next seed reads the cache
    np.testing.assert_array_equal(add_teacher_outputs(setup).teacher_states, states)


def test_teacher_states_of_a_larger_model_are_of_evenly_spaced_layers_and_projected(
    recipe_of: Callable[..., Recipe], encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger = ("model.name=null", "model.size=mini", f"model.tokenizer={encoder}")
    finetune(recipe_of("training.max_steps=2", *larger), Path("teacher"), RunOptions(console=QUIET))
    setup = set_up(recipe_of(*HIDDEN), None)
    monkeypatch.setattr(distillation_module, "MAX_CHUNK_ITEMS", 5)
    states = add_teacher_outputs(setup).teacher_states
    assert states is not None
    full_size = transformers_cls_states("teacher/model", setup.encode("train"))[:, [1, 3]]  # two of four layers
    assert states.shape == (len(full_size), 2, 16)
    mean, components = principal_components(full_size, 16)
    expected = np.einsum("nlh,lhp->nlp", full_size - mean, components)
    np.testing.assert_allclose(states[..., :3], expected[..., :3], atol=0.02)  # rounding decides the smallest ones


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("model.size=mini", r"has 2 layers of hidden size 16, but the student has 4 layers of hidden size 256"),
        ("model.size=tiny", "the student has 2 layers of hidden size 128"),
    ],
)
def test_hidden_states_of_a_smaller_teacher_are_rejected(
    recipe_of: Callable[..., Recipe], size: str, message: str
) -> None:
    finetune(recipe_of("training.max_steps=2"), Path("teacher"), RunOptions(console=QUIET))
    recipe = recipe_of("model.name=null", size, "model.tokenizer=teacher/model", *HIDDEN)
    with pytest.raises(ModelError, match=message):
        finetune(recipe, Path("run"), RunOptions(dry_run=True, console=QUIET))


def test_hidden_states_need_cls_at_the_start_of_texts(recipe_of: Callable[..., Recipe]) -> None:
    finetune(recipe_of("training.max_steps=2"), Path("teacher"), RunOptions(console=QUIET))
    setup = set_up(recipe_of(*HIDDEN), None)
    tokenizer = copy.deepcopy(setup.tokenizer)
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A [SEP] [CLS]", pair="$A [SEP] $B [SEP] [CLS]", special_tokens=special
    )
    student = setup.build_model(QUIET)
    load_teacher(setup, student)
    with pytest.raises(ModelError, match=r"the student's texts do not begin with \[CLS\]"):
        load_teacher(replace(setup, tokenizer=tokenizer), student)


def test_teacher_states_of_multiple_choice_are_per_choice(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path / "cache"))
    small = [f"model.name={encoder}", "data.max_length=32", "data.max_train_examples=12", "training.max_steps=2"]
    finetune(load_recipe("sample/choices", small), Path("teacher"), RunOptions(console=QUIET))
    recipe = load_recipe("sample/choices", [*small, *HIDDEN])
    encoded = add_teacher_outputs(set_up(recipe, None))
    assert encoded.teacher_states is not None
    assert encoded.teacher_states.shape == (12 * encoded.num_choices, 2, 16)
    batch = encoded.batch(np.array([3, 1]))
    assert batch["teacher_states"].shape == (2, encoded.num_choices, 2, 16)
    item_3 = encoded.teacher_states[3 * encoded.num_choices : 4 * encoded.num_choices]
    np.testing.assert_array_equal(batch["teacher_states"][0].numpy(), item_3)
    assert finetune(recipe, Path("run"), RunOptions(console=QUIET)).total_steps == 2


def test_multiple_choice_on_a_frozen_encoder_with_a_teacher(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path / "cache"))
    small = [f"model.name={encoder}", "data.max_length=32", "data.max_train_examples=12", "training.max_steps=2"]
    finetune(load_recipe("sample/choices", small), Path("teacher"), RunOptions(console=QUIET))
    recipe = load_recipe("sample/choices", [*small, "training.strategy=features", "training.teacher=teacher"])
    assert finetune(recipe, Path("run"), RunOptions(console=QUIET)).total_steps == 2


def test_principal_components_keep_the_variance_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation_module, "MAX_CHUNK_ITEMS", 7)
    random = np.random.default_rng(0)
    subspace = np.linalg.qr(random.standard_normal((8, 3)))[0]  # all the variance, in three of eight dimensions
    points = random.standard_normal((50, 1, 3)) * 0.1
    points[25:] += 1  # the first chunks alone have another mean and other components
    states = points @ subspace.T + 5
    mean, components = principal_components(states, 3)
    projected = np.einsum("nlh,lhp->nlp", states - mean, components)

    def distances(values: np.ndarray) -> np.ndarray:
        return np.linalg.norm(values[:, None, 0] - values[None, :, 0], axis=-1)

    np.testing.assert_allclose(distances(projected), distances(states), atol=1e-5)
    assert projected.var(0)[0, 0] > 10 * projected.var(0)[0, 1]


def test_hidden_states_loss_depends_only_on_directions() -> None:
    torch.manual_seed(0)
    states, teacher_states = torch.randn(2, 6, 3, 4)
    normalized = [values / values.norm(dim=-1, keepdim=True) for values in (states, teacher_states)]
    expected = float(((normalized[0] - normalized[1]) ** 2).sum(-1).mean(1).sum())
    assert float(hidden_states_loss(states, teacher_states)) == pytest.approx(expected, rel=1e-5)
    assert float(hidden_states_loss(states, 3 * states)) == pytest.approx(0, abs=1e-5)
    two_choices = hidden_states_loss(states, teacher_states.view(3, 2, 3, 4))  # three items of two choices
    assert float(two_choices) == pytest.approx(expected / 2, rel=1e-5)


def test_hidden_states_loss_is_added_with_its_weight() -> None:
    torch.manual_seed(0)
    states, teacher_states, logits = torch.randn(4, 2, 8), torch.randn(4, 2, 8), torch.randn(4, 2)
    outputs = SequenceClassifierOutput(logits=logits, hidden_states=(states,))
    labels, teacher_logits = torch.tensor([0, 1, 1, 0]), torch.randn(4, 2)
    targets = {"labels": labels, "teacher_logits": teacher_logits, "teacher_states": teacher_states}
    head, counts = TextClassification("single_label", ("a", "b")), {"labels": 8}
    losses = [
        float(build_loss(head, TrainingSection(teacher="t", teacher_hidden_weight=weight))(outputs, targets, counts))
        for weight in (0, 3)
    ]
    expected = 3 * float(hidden_states_loss(states, teacher_states)) / 8
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("hidden_weight", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_resumed_student_ends_where_an_uninterrupted_one_ends(
    recipe_of: Callable[..., Recipe], stop_after: Callable[..., None], hidden_weight: float
) -> None:
    finetune(recipe_of("training.max_steps=2"), Path("teacher"), RunOptions(console=QUIET))
    weight = f"training.teacher_hidden_weight={hidden_weight}"
    recipe = recipe_of("training.teacher=teacher", "training.max_steps=6", weight)
    uninterrupted = finetune(recipe, Path("uninterrupted"), RunOptions(console=QUIET))
    other = recipe_of("training.max_steps=6", *(("training.teacher=teacher",) if hidden_weight else ()))
    assert uninterrupted.metrics != finetune(other, Path("other"), RunOptions(console=QUIET)).metrics
    stop_after(3)
    with pytest.raises(Interrupted, match="saved after step 3"):
        finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert finetune(recipe, Path("run"), RunOptions(console=QUIET)).metrics == uninterrupted.metrics
