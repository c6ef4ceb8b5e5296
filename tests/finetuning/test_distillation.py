"""A student learns from a teacher's answers and hidden states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from bertcli.console import Console
from bertcli.data.encoding import Encoded
from bertcli.errors import Interrupted, ModelError
from bertcli.finetuning import distillation as teacher_module
from bertcli.finetuning.distillation import main_directions, with_teacher
from bertcli.finetuning.loss import distance_from_teacher, distance_of_states, loss_of
from bertcli.finetuning.run import finetune
from bertcli.finetuning.setup import Prepared, prepare
from bertcli.heads.text_classification import TextClassification
from bertcli.inference.loaded_model import answer_inputs, open_trained
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import Recipe, TrainingSection
from bertcli.runs.folder import RunOptions
from bertcli.training import trainer as train_module
from bertcli.training.devices import build_accelerator

QUIET = Console(quiet=True)


def teach(prepared: Prepared) -> Encoded:
    """The training rows with what the recipe's teacher makes of them."""
    accelerator = build_accelerator(prepared.recipe.hardware)
    return with_teacher(prepared, prepared.encode("train"), prepared.build_model(), accelerator, QUIET)


def test_the_distance_from_a_teacher_is_the_divergence_of_softened_answers() -> None:
    torch.manual_seed(0)
    own, others = torch.randn(2, 5, 3)
    expected = 0.0
    for row in range(5):
        p, q = (others[row] / 3).softmax(-1), (own[row] / 3).softmax(-1)
        expected += 9 * float((p * (p / q).log()).sum())
    assert float(distance_from_teacher(own, others, 3.0)) == pytest.approx(expected, rel=1e-5)
    assert float(distance_from_teacher(own, own, 3.0)) == pytest.approx(0, abs=1e-6)


def test_a_student_learns_what_its_teacher_answers(recipe_of: Callable[..., Recipe], reviews: Path) -> None:
    finetune(recipe_of("training.epochs=8"), Path("teacher"), RunOptions(console=QUIET))
    turned = ["task.labels=[positive, negative]", "training.teacher=teacher"]
    prepared = prepare(recipe_of(*turned), None)
    taught = teach(prepared)
    logits = taught.teacher_logits
    assert taught.teacher_states is None
    asked = [{"text": text} for text in prepared.rows["train"]["text"]]
    trained = open_trained("teacher", None)
    answered = np.concatenate([part for *_, part in answer_inputs(trained, trained.task, asked, QUIET)])
    assert logits is not None
    np.testing.assert_allclose(logits, answered[:, ::-1], atol=1e-5)
    wrong = replace(prepared, head=TextClassification("single_label", ("a", "b")))
    with pytest.raises(ModelError, match="labels disagree"):
        teach(wrong)


HIDDEN = ("training.teacher=teacher", "training.teacher_hidden_weight=2")


def first_states_of(model: str, encoded: Encoded) -> np.ndarray:
    """What plain transformers makes of first tokens, layer by layer: [N, layers, width]."""
    plain = AutoModelForSequenceClassification.from_pretrained(model).eval()
    batch = encoded.batch(np.arange(len(encoded)))
    batch.pop("labels")
    with torch.inference_mode():
        hidden = plain(**batch, output_hidden_states=True).hidden_states
    return torch.stack([layer[:, 0] for layer in hidden[1:]], 1).numpy()


def test_a_student_as_wide_as_its_teacher_is_compared_with_the_states_themselves(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(recipe_of("training.max_steps=2"), Path("teacher"), RunOptions(console=QUIET))
    prepared = prepare(recipe_of(*HIDDEN), None)
    encoded = prepared.encode("train")
    states = teach(prepared).teacher_states
    assert states is not None
    np.testing.assert_allclose(states, first_states_of("teacher/model", encoded), atol=5e-3)
    monkeypatch.setattr(teacher_module, "compute_logits", None)  # the next seed finds them
    np.testing.assert_array_equal(teach(prepared).teacher_states, states)


def test_a_deeper_and_wider_teacher_is_read_at_evenly_spread_layers(
    recipe_of: Callable[..., Recipe], encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = ("model.name=null", "model.size=mini", f"model.tokenizer={encoder}")
    finetune(recipe_of("training.max_steps=2", *fresh), Path("teacher"), RunOptions(console=QUIET))
    prepared = prepare(recipe_of(*HIDDEN), None)
    monkeypatch.setattr(teacher_module, "ITEMS_AT_ONCE", 5)
    states = teach(prepared).teacher_states
    assert states is not None
    told = first_states_of("teacher/model", prepared.encode("train"))[:, [1, 3]]  # of four, for two
    assert states.shape == (len(told), 2, 16)
    mean, basis = main_directions(told, 16)
    expected = np.einsum("nlh,lhw->nlw", told - mean, basis)
    np.testing.assert_allclose(states[..., :3], expected[..., :3], atol=0.02)  # of the least, rounding decides


@pytest.mark.parametrize(
    ("larger", "words"),
    [
        ("model.size=mini", r"has 2 layers of width 16, the student 4 of 256"),
        ("model.size=tiny", "the student 2 of 128"),
    ],
)
def test_a_larger_student_is_not_compared_layer_by_layer(
    recipe_of: Callable[..., Recipe], larger: str, words: str
) -> None:
    finetune(recipe_of("training.max_steps=2"), Path("teacher"), RunOptions(console=QUIET))
    recipe = recipe_of("model.name=null", larger, "model.tokenizer=teacher/model", *HIDDEN)
    with pytest.raises(ModelError, match=words):
        finetune(recipe, Path("run"), RunOptions(dry_run=True, console=QUIET))


def test_choices_have_states_of_their_own(encoder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path / "cache"))
    small = [f"model.name={encoder}", "data.max_length=32", "data.max_train_examples=12", "training.max_steps=2"]
    finetune(load_recipe("sample/choices", small), Path("teacher"), RunOptions(console=QUIET))
    recipe = load_recipe("sample/choices", [*small, *HIDDEN])
    prepared = prepare(recipe, None)
    taught = teach(prepared)
    assert taught.teacher_states is not None
    assert taught.teacher_states.shape == (12 * taught.num_choices, 2, 16)
    batch = taught.batch(np.array([3, 1]))
    assert batch["teacher_states"].shape == (2, taught.num_choices, 2, 16)
    third = taught.teacher_states[3 * taught.num_choices : 4 * taught.num_choices]
    np.testing.assert_array_equal(batch["teacher_states"][0].numpy(), third)
    assert finetune(recipe, Path("run"), RunOptions(console=QUIET))["total_steps"] == 2


def test_a_fixed_encoder_chooses_with_a_teacher(encoder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path / "cache"))
    small = [f"model.name={encoder}", "data.max_length=32", "data.max_train_examples=12", "training.max_steps=2"]
    finetune(load_recipe("sample/choices", small), Path("teacher"), RunOptions(console=QUIET))
    recipe = load_recipe("sample/choices", [*small, "training.strategy=features", "training.teacher=teacher"])
    assert finetune(recipe, Path("run"), RunOptions(console=QUIET))["total_steps"] == 2


def test_main_directions_keep_what_varies_most_among_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_module, "ITEMS_AT_ONCE", 7)
    random = np.random.default_rng(0)
    plane = np.linalg.qr(random.standard_normal((8, 3)))[0]  # all that varies, of eight directions
    points = random.standard_normal((50, 1, 3)) * 0.1
    points[25:] += 1  # the rows lie sorted
    states = points @ plane.T + 5
    mean, basis = main_directions(states, 3)
    turned = np.einsum("nlh,lhw->nlw", states - mean, basis)

    def distances(values: np.ndarray) -> np.ndarray:
        return np.linalg.norm(values[:, None, 0] - values[None, :, 0], axis=-1)

    np.testing.assert_allclose(distances(turned), distances(states), atol=1e-5)
    assert turned.var(0)[0, 0] > 10 * turned.var(0)[0, 1]


def test_the_distance_of_states_knows_their_direction_alone() -> None:
    torch.manual_seed(0)
    own, others = torch.randn(2, 6, 3, 4)
    ones = [state / state.norm(dim=-1, keepdim=True) for state in (own, others)]
    expected = float(((ones[0] - ones[1]) ** 2).sum(-1).mean(1).sum())
    assert float(distance_of_states(own, others)) == pytest.approx(expected, rel=1e-5)
    assert float(distance_of_states(own, 3 * own)) == pytest.approx(0, abs=1e-5)
    of_pairs = distance_of_states(own, others.view(3, 2, 3, 4))  # three items of two choices
    assert float(of_pairs) == pytest.approx(expected / 2, rel=1e-5)


def test_the_loss_adds_the_distance_of_states_by_its_weight() -> None:
    torch.manual_seed(0)
    states, others, logits = torch.randn(4, 2, 8), torch.randn(4, 2, 8), torch.randn(4, 2)
    outputs = SequenceClassifierOutput(logits=logits, hidden_states=(states,))
    targets = {"labels": torch.tensor([0, 1, 1, 0]), "teacher_logits": torch.randn(4, 2), "teacher_states": others}
    head, counts = TextClassification("single_label", ("a", "b")), {"labels": 8}
    losses = [
        float(loss_of(head, TrainingSection(teacher="t", teacher_hidden_weight=weight))(outputs, targets, counts))
        for weight in (0, 3)
    ]
    assert losses[1] - losses[0] == pytest.approx(3 * float(distance_of_states(states, others)) / 8, rel=1e-5)


@pytest.mark.parametrize("hidden", [0, 2])
def test_a_student_stopped_on_the_way_goes_on_exactly(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, hidden: float
) -> None:
    finetune(recipe_of("training.max_steps=2"), Path("teacher"), RunOptions(console=QUIET))
    recipe = recipe_of("training.teacher=teacher", "training.max_steps=6", f"training.teacher_hidden_weight={hidden}")
    whole = finetune(recipe, Path("whole"), RunOptions(console=QUIET))
    other = recipe_of("training.max_steps=6", *(("training.teacher=teacher",) if hidden else ()))
    assert whole["metrics"] != finetune(other, Path("other"), RunOptions(console=QUIET))["metrics"]
    asked = iter([None, None, 15])
    with monkeypatch.context() as patch:
        patch.setattr(train_module._Run, "_agreed", lambda run, request, step: next(asked, 15))
        with pytest.raises(Interrupted):
            finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert finetune(recipe, Path("run"), RunOptions(console=QUIET))["metrics"] == whole["metrics"]
