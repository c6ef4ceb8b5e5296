"""A student learns from a teacher's answers and hidden states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from bertcli.commands import train as train_module
from bertcli.commands.finetune import finetune
from bertcli.commands.prepare import prepare
from bertcli.commands.score import distance_from_teacher, distance_of_states
from bertcli.commands.teacher import main_directions, turned_states, with_teacher
from bertcli.commands.trained import answer_inputs, open_trained
from bertcli.errors import Interrupted, ModelError
from bertcli.heads.text_classification import TextClassification
from bertcli.recipe.schema import Recipe
from bertcli.runs.console import Console

QUIET = Console(quiet=True)


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
    finetune(recipe_of("training.epochs=8"), Path("teacher"), console=QUIET)
    turned = ["task.labels=[positive, negative]", "training.teacher=teacher"]
    prepared = prepare(recipe_of(*turned), None)
    student = prepared.build_model()
    taught = with_teacher(prepared, prepared.encode("train"), student, QUIET)
    logits = taught.teacher_logits
    assert taught.teacher_states is None
    asked = [{"text": text} for text in prepared.rows["train"]["text"]]
    trained = open_trained("teacher", None)
    answered = np.concatenate([part for *_, part in answer_inputs(trained, trained.task, asked, QUIET)])
    assert logits is not None
    np.testing.assert_allclose(logits, answered[:, ::-1], atol=1e-5)
    wrong = replace(prepared, head=TextClassification("single_label", ("a", "b")))
    with pytest.raises(ModelError, match="labels disagree"):
        with_teacher(wrong, prepared.encode("train"), student, QUIET)


def test_a_student_as_wide_as_its_teacher_is_compared_with_the_states_themselves(
    recipe_of: Callable[..., Recipe],
) -> None:
    finetune(recipe_of("training.max_steps=2"), Path("teacher"), console=QUIET)
    prepared = prepare(recipe_of("training.teacher=teacher", "training.teacher_hidden_weight=1"), None)
    encoded = prepared.encode("train")
    states = with_teacher(prepared, encoded, prepared.build_model(), QUIET).teacher_states
    assert states is not None
    plain = AutoModelForSequenceClassification.from_pretrained("teacher/model").eval()
    batch = encoded.batch(np.arange(len(encoded)))
    batch.pop("labels")
    with torch.inference_mode():
        hidden = plain(**batch, output_hidden_states=True).hidden_states
    expected = torch.stack([layer[:, 0] for layer in hidden[1:]], 1)
    np.testing.assert_allclose(states, expected.numpy(), atol=1e-5)


def test_a_deeper_student_is_not_compared_layer_by_layer(recipe_of: Callable[..., Recipe]) -> None:
    finetune(recipe_of("training.max_steps=2"), Path("teacher"), console=QUIET)
    deep = ["model.name=null", "model.size=small", "model.tokenizer=teacher/model"]
    hidden = ["training.teacher=teacher", "training.teacher_hidden_weight=1"]
    with pytest.raises(ModelError, match=r"has 2 layers and the student 4"):
        finetune(recipe_of(*deep, *hidden), Path("run"), dry_run=True, console=QUIET)


def test_states_of_a_narrower_student_keep_what_varies_most() -> None:
    random = np.random.default_rng(0)
    plane = np.linalg.qr(random.standard_normal((8, 3)))[0]  # all that varies, of eight directions
    states = (random.standard_normal((50, 1, 3)) @ plane.T + 5).astype(np.float32)
    turned = turned_states(states, *main_directions(states, 3))
    assert turned.shape == (50, 1, 3)

    def distances(points: np.ndarray) -> np.ndarray:
        return np.linalg.norm(points[:, None, 0] - points[None, :, 0], axis=-1)

    np.testing.assert_allclose(distances(turned), distances(states), atol=1e-5)
    assert turned.var(0)[0, 0] > turned.var(0)[0, 2]
    wider = turned_states(states, *main_directions(states, 10))
    np.testing.assert_array_equal(wider[..., :8], states)
    assert not wider[..., 8:].any()


def test_the_distance_of_states_knows_their_direction_alone() -> None:
    torch.manual_seed(0)
    own, others = torch.randn(2, 5, 3, 4)
    ones = [state / state.norm(dim=-1, keepdim=True) for state in (own, others)]
    expected = float(((ones[0] - ones[1]) ** 2).sum(-1).mean(1).sum())
    assert float(distance_of_states(own, others)) == pytest.approx(expected, rel=1e-5)
    assert float(distance_of_states(own, 3 * own)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("hidden", [0, 2])
def test_a_student_stopped_on_the_way_goes_on_exactly(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, hidden: float
) -> None:
    finetune(recipe_of("training.max_steps=2"), Path("teacher"), console=QUIET)
    recipe = recipe_of("training.teacher=teacher", "training.max_steps=6", f"training.teacher_hidden_weight={hidden}")
    whole = finetune(recipe, Path("whole"), console=QUIET)
    assert whole["metrics"] != finetune(recipe_of("training.max_steps=6"), Path("alone"), console=QUIET)["metrics"]
    asked = iter([None, None, 15])
    with monkeypatch.context() as patch:
        patch.setattr(train_module._Run, "_agreed", lambda run, request, step: next(asked, 15))
        with pytest.raises(Interrupted):
            finetune(recipe, Path("run"), console=QUIET)
    assert finetune(recipe, Path("run"), console=QUIET)["metrics"] == whole["metrics"]
