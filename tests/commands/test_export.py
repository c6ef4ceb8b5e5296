"""ONNX graphs answer as the models they were made of, for each head; the README's program runs one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import transformers
from typer.testing import CliRunner, Result

from bertcli.cli.main import app
from bertcli.commands import export as export_command
from bertcli.models.from_pretrained import load_tokenizer, save_model

from ..conftest import REPOSITORY, TEXTS

HEADS = {
    "AutoModelForSequenceClassification": {"num_labels": 3},
    "AutoModelForTokenClassification": {"num_labels": 5},
    "AutoModelForQuestionAnswering": {},
    "AutoModelForMultipleChoice": {},
    "AutoModelForMaskedLM": {},
    "AutoModel": {},
}


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["export", *words])


def save(folder: Path, encoder: Path, model_class: str, num_layers: int = 1, **fields: Any) -> Path:
    """A model with fresh weights, as narrow as `encoder`, with its tokenizer."""
    config = transformers.AutoConfig.from_pretrained(encoder, num_hidden_layers=num_layers, **fields)
    torch.manual_seed(0)
    model = getattr(transformers, model_class).from_config(config)
    save_model(model, load_tokenizer(str(encoder), None), folder)
    return folder


def assert_alike(model: Path, exported: Path, model_class: str) -> None:
    """The graph and plain transformers give the same for texts, alone and padded together, and for choices of them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    plain = getattr(transformers, model_class).from_pretrained(model).eval()
    for texts in (TEXTS[:1], TEXTS, [" ".join(TEXTS)] * 2):
        inputs = dict(tokenizer(texts, return_tensors="pt", padding=True))
        if "MultipleChoice" in model_class:
            inputs = {name: tensor[None] for name, tensor in inputs.items()}
        with torch.inference_mode():
            expected = plain(**inputs)
        found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        assert [output.name for output in session.get_outputs()] == list(expected.keys())
        for own, other in zip(expected.to_tuple(), found, strict=True):
            assert torch.allclose(own, torch.from_numpy(other), atol=1e-4)


@pytest.fixture(scope="module")
def classifier(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    return save(tmp_path_factory.mktemp("classifier"), encoder, "AutoModelForSequenceClassification", **names)


@pytest.fixture(scope="module")
def exported(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exports") / "classifier"
    told = call(str(classifier), "--output", str(output), "--json")
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["largest_difference"] < 1e-4
    return output


def test_a_classifiers_graph_answers_as_the_model(classifier: Path, exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {
        *("model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json")
    }
    assert exported.stat().st_mode & 0o777 == 0o755
    graph = (exported / "model.onnx").read_bytes()
    assert not any(str(place).encode() in graph for place in (REPOSITORY, Path(torch.__file__).parent, Path.cwd()))
    assert_alike(classifier, exported, "AutoModelForSequenceClassification")


def test_the_readmes_program_runs(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    program = next(text for text in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "onnxruntime" in text)
    Path("exported").symlink_to(exported)
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in ("good", "bad")


def test_an_existing_folder_is_kept(classifier: Path) -> None:
    Path("mine").mkdir()
    told = call(str(classifier), "--output", "mine")
    assert told.exit_code == 2
    assert "mine exists already" in told.stderr
    assert call(str(classifier), "--output", "x", "--format", "torchscript").exit_code == 2


def test_a_graph_that_answers_otherwise_is_not_kept(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_command, "write_onnx", lambda model, names, path: path.write_bytes(b"graph"))
    for difference in (0.5, float("nan")):
        monkeypatch.setattr(export_command, "largest_difference", lambda *_, found=difference: found)
        told = call(str(classifier), "--output", "made")
        assert told.exit_code == 1
        assert "answers otherwise than the model" in told.stderr
    assert list(Path().iterdir()) == []


def test_a_missing_package_is_told_with_the_cure(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    told = call(str(classifier), "--output", "made")
    assert told.exit_code == 1
    assert 'pip install "bertcli[export]"' in told.stderr


def test_what_is_no_encoder_is_refused(encoder: Path) -> None:
    config = transformers.GPT2Config(vocab_size=128, n_embd=16, n_layer=1, n_head=2)
    save_model(transformers.GPT2LMHeadModel(config), load_tokenizer(str(encoder), None), Path("gpt"))
    told = call("gpt", "--output", "made")
    assert told.exit_code == 1
    assert "gpt is a GPT2LMHeadModel; encoders are exported" in told.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HEADS if name != "AutoModelForSequenceClassification"])
def test_every_heads_graph_answers_as_the_model(encoder: Path, name: str) -> None:
    save(Path("model"), encoder, name, 2, **HEADS[name])
    told = call("model", "--output", "made")
    assert told.exit_code == 0, told.stderr
    assert_alike(Path("model"), Path("made"), name)


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_every_problems_graph_answers_as_the_model(encoder: Path, problem: str) -> None:
    save(Path("model"), encoder, "AutoModelForSequenceClassification", 2, num_labels=1, problem_type=problem)
    assert call("model", "--output", "made").exit_code == 0
    assert_alike(Path("model"), Path("made"), "AutoModelForSequenceClassification")
