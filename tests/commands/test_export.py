"""Exported ONNX graphs give the same outputs as their models, for each head; the README's example runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import torch
import transformers
from typer.testing import CliRunner, Result

from bertcli.cli.main import app
from bertcli.commands import export as export_command
from bertcli.commands.evaluate import evaluate
from bertcli.models import onnx_export
from bertcli.models.from_pretrained import ModelSource, save_model

from ..conftest import QUIET, REPOSITORY, TEXTS
from .conftest import ExportedRun

HEADS = {
    "AutoModelForSequenceClassification": {"num_labels": 3},
    "AutoModelForTokenClassification": {"num_labels": 5},
    "AutoModelForQuestionAnswering": {},
    "AutoModelForMultipleChoice": {},
    "AutoModelForMaskedLM": {},
    "AutoModel": {},
}


@pytest.fixture(autouse=True)
def _brief_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_command, "TIMING_SECONDS", 0.01)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["export", *arguments])


def wrong_logits(model: Any, **inputs: torch.Tensor) -> Any:
    return SimpleNamespace(logits=-model.original(**inputs).logits)


def save(folder: Path, encoder: Path, model_class: str, num_layers: int = 1, **fields: Any) -> Path:
    """Save a randomly initialized model of the same width as `encoder`, with its tokenizer."""
    config = transformers.AutoConfig.from_pretrained(encoder, num_hidden_layers=num_layers, **fields)
    torch.manual_seed(0)
    model = getattr(transformers, model_class).from_config(config)
    save_model(model, ModelSource(str(encoder)).load_tokenizer(), folder)
    return folder


def assert_same_outputs(model: Path, exported: Path, model_class: str) -> None:
    """The graph and plain transformers agree on single texts, padded batches and answer choices."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    reference = getattr(transformers, model_class).from_pretrained(model).eval()
    for texts in (TEXTS[:1], TEXTS, [" ".join(TEXTS)] * 2):
        inputs = dict(tokenizer(texts, return_tensors="pt", padding=True))
        if "MultipleChoice" in model_class:
            inputs = {name: tensor[None] for name, tensor in inputs.items()}
        with torch.inference_mode():
            expected = reference(**inputs)
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        assert [output.name for output in session.get_outputs()] == list(expected.keys())
        for tensor, array in zip(expected.to_tuple(), outputs, strict=True):
            assert torch.allclose(tensor, torch.from_numpy(array), atol=1e-4)


def test_onnx_text_classification_matches_the_model(exported_run: ExportedRun) -> None:
    exported, facts = exported_run.output, exported_run.facts
    assert facts["largest_difference"] < 1e-4
    assert (facts["metric"], [entry["scores"] for entry in facts["comparison"]]) == (None, [None, None])
    assert "is not a fine-tuning run, so its task is unknown" in exported_run.messages
    assert {path.name for path in exported.iterdir()} == {
        *("model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json")
    }
    assert exported.stat().st_mode & 0o777 == 0o755
    graph = (exported / "model.onnx").read_bytes()
    assert not any(str(path).encode() in graph for path in (REPOSITORY, Path(torch.__file__).parent, Path.cwd()))
    assert_same_outputs(exported_run.run / "model", exported, "AutoModelForSequenceClassification")


def test_onnx_example_of_the_readme_runs(exported_run: ExportedRun, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    program = next(text for text in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "onnxruntime" in text)
    Path("exported").symlink_to(exported_run.output)
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in ("good", "bad")


@pytest.mark.usefixtures("_traced")
def test_export_in_int8_compares_score_size_and_latency(
    exported_run: ExportedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_command, "MAX_POINTS_LOST", 100.0)
    result = call(str(exported_run.run), "--output", "exported", "--precision", "int8", "--json")
    assert result.exit_code == 0, result.stderr
    assert "warning" not in result.stderr
    facts = json.loads(result.stdout)
    assert (facts["precision"], facts["metric"], facts["num_rows"]) == ("int8", "f1", 4)
    pytorch, exported = facts["comparison"]
    assert pytorch["scores"]["f1"] == evaluate(str(exported_run.run), console=QUIET).mean_scores("validation")["f1"]
    assert exported["bytes"] == Path("exported/model.onnx").stat().st_size < exported_run.facts["bytes"]
    assert min(entry["latency_ms"] for entry in facts["comparison"]) > 0
    assert all(entry["form"] in result.stderr for entry in facts["comparison"])
    assert exported["scores"].keys() == pytorch["scores"].keys()


@pytest.mark.usefixtures("_traced")
def test_export_warns_about_a_worse_score(exported_run: ExportedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_command.OnnxModel, "forward", wrong_logits)
    monkeypatch.setattr(export_command, "MAX_POINTS_LOST", -100.0)
    result = call(str(exported_run.run), "--output", "exported", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert Path("exported/model.onnx").is_file()
    assert re.search(r"f1 is worse by -?\d+\.\d points in fp32: .* --precision fp32", result.stderr)


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("problem", ["data", "recipe"])
def test_export_warns_that_the_score_is_unknown(exported_run: ExportedRun, problem: str) -> None:
    shutil.copytree(exported_run.run, "run")
    path = Path("run/recipe.yaml")
    recipe = path.read_text("utf-8")
    changed = {
        "data": recipe.replace("reviews.csv", "missing.csv"),
        "recipe": recipe + "other: 1\n",
    }
    path.write_text(changed[problem], "utf-8")
    result = call("run", "--output", "exported", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert Path("exported/model.onnx").is_file()
    named = {"data": r"missing\.csv", "recipe": "run is a run of another version"}[problem]
    assert re.search(f"not scored: .*{named}", result.stderr)


def test_export_keeps_an_existing_folder(exported_run: ExportedRun) -> None:
    Path("mine").mkdir()
    result = call(str(exported_run.run), "--output", "mine")
    assert result.exit_code == 2
    assert "mine already exists" in result.stderr
    assert call(str(exported_run.run), "--output", "x", "--format", "torchscript").exit_code == 2
    assert (
        "expected one of fp32, fp16, int8" in call(str(exported_run.run), "--output", "x", "--precision", "bf16").stderr
    )


def test_export_removes_a_graph_with_different_outputs(
    exported_run: ExportedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "write_onnx", lambda model, names, path: path.write_bytes(b"graph"))
    for difference in (0.5, float("nan")):
        monkeypatch.setattr(onnx_export, "largest_difference", lambda *_, value=difference: value)
        result = call(str(exported_run.run), "--output", "exported")
        assert result.exit_code == 1
        assert "differ from the model's by" in result.stderr
    assert list(Path().iterdir()) == []


def test_export_without_its_packages_says_how_to_install_them(
    exported_run: ExportedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    result = call(str(exported_run.run), "--output", "exported")
    assert result.exit_code == 1
    assert 'pip install "bertcli[export]"' in result.stderr


def test_export_rejects_a_decoder(encoder: Path) -> None:
    config = transformers.GPT2Config(vocab_size=128, n_embd=16, n_layer=1, n_head=2)
    save_model(transformers.GPT2LMHeadModel(config), ModelSource(str(encoder)).load_tokenizer(), Path("gpt"))
    result = call("gpt", "--output", "exported")
    assert result.exit_code == 1
    assert "gpt is a GPT2LMHeadModel, expected an encoder" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HEADS if name != "AutoModelForSequenceClassification"])
def test_onnx_of_every_head_matches_the_model(encoder: Path, name: str) -> None:
    save(Path("model"), encoder, name, 2, **HEADS[name])
    result = call("model", "--output", "exported")
    assert result.exit_code == 0, result.stderr
    assert_same_outputs(Path("model"), Path("exported"), name)


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_onnx_of_every_problem_type_matches_the_model(encoder: Path, problem: str) -> None:
    save(Path("model"), encoder, "AutoModelForSequenceClassification", 2, num_labels=1, problem_type=problem)
    assert call("model", "--output", "exported").exit_code == 0
    assert_same_outputs(Path("model"), Path("exported"), "AutoModelForSequenceClassification")


@pytest.mark.parametrize("is_traced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_onnx_of_a_model_without_token_types_ignores_those_of_its_tokenizer(
    encoder: Path, is_traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_traced:
        monkeypatch.setattr(export_command, "export_onnx", lambda *_: 0.0)
        monkeypatch.setattr(export_command, "_compare", lambda *_: {})
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer), type_vocab_size=1, max_position_embeddings=66, pad_token_id=0, **fields
    )
    save_model(transformers.RobertaForSequenceClassification(config), tokenizer, Path("roberta"))
    result = call("roberta", "--output", "exported", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["inputs"] == ["input_ids", "attention_mask"]
    exported_tokenizer = transformers.AutoTokenizer.from_pretrained("exported")
    assert set(exported_tokenizer("good", "bad")) == {"input_ids", "attention_mask"}
