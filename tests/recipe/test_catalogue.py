"""`bertcli recipes` and `bertcli env`: list, show, copy, check and diff recipes, and the JSON schema."""

from __future__ import annotations

import json
import re
from functools import cache, partial
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
    dump_annotated,
    json_schema,
    list_recipes,
    load_any,
    show_recipe,
)
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import (
    dump_recipe,
    load_pretrain_recipe,
    load_recipe,
    load_single_recipe,
    shipped_recipes,
)
from bertcli.recipe.pretrain_schema import PretrainingSection
from bertcli.recipe.schema import TrainingSection
from bertcli.recipe.search import Search, dump_search
from bertcli.recipe.suite import Suite, recipes_by_name


@cache
def schema_validator(kind: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json_schema(kind))


def schema_problems(text: str, kind: str) -> list[str]:
    return [error.message for error in schema_validator(kind).iter_errors(YAML(typ="safe").load(text))]


@pytest.mark.parametrize("name", shipped_recipes())
def test_schema_accepts_every_shipped_recipe(name: str) -> None:
    kind = "pretrain" if name.startswith("pretrain/") else "finetune"
    assert schema_problems(shipped_recipes()[name].read_text("utf-8"), kind) == []


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
def test_schema_and_typed_recipe_reject_the_same(text: str) -> None:
    Path("wrong.yaml").write_text(f"task: glue/sst2\n{text}\n", "utf-8")
    assert schema_problems(Path("wrong.yaml").read_text("utf-8"), "finetune")
    with pytest.raises(RecipeError):
        load_any("wrong.yaml")


def test_schema_accepts_one_seed_and_several() -> None:
    assert schema_problems("training: {seed: 3}", "finetune") == []
    assert schema_problems("training: {seed: [3, 4]}", "pretrain") == []
    with pytest.raises(UsageError, match="finetune, pretrain"):
        json_schema("eval")


@pytest.mark.parametrize("key", [key for key in TrainingSection.model_fields if key != "seed"])
def test_schema_accepts_a_list_of_valid_values_for_each_grid_key(key: str) -> None:
    value = TrainingSection.model_fields[key].default
    values = json.dumps([value, value])
    assert schema_problems(f"training: {{{key}: {values}}}", "finetune") == []
    assert schema_problems(f"training: {{{key}: [[]]}}", "finetune")
    if key in PretrainingSection.model_fields:
        assert schema_problems(f"training: {{{key}: {values}}}", "pretrain")


def test_schema_does_not_require_keys_of_the_extended_recipe() -> None:
    assert schema_problems("extends: pretrain/tiny\ncorpus: {max_documents: 10}", "pretrain") == []
    assert schema_problems("extends: sentiment/custom-csv\ntask: {label_column: y}", "finetune") == []


def test_list_describes_each_recipe_and_can_be_filtered() -> None:
    listed = list_recipes()
    assert [recipe["recipe"] for recipe in listed] == list(shipped_recipes())
    assert all(20 < len(str(recipe["about"])) < 240 for recipe in listed), listed
    assert [recipe["recipe"] for recipe in list_recipes(["squad", "1.1"])] == ["squad/v1-by-article", "squad/v1"]
    assert next(recipe for recipe in listed if recipe["recipe"] == "pretrain/tiny")["verb"] == "pretrain"


def test_list_has_expected_score_and_time_where_measured() -> None:
    measured, unknown = (list_recipes([name])[0] for name in ("sample/sentiment", "glue/qqp"))
    assert [measured[part] for part in ("score", "time", "conditions")] == [
        "accuracy 0.9775",
        "6 seconds",
        "tiny BERT, one core",
    ]
    assert (unknown["score"], unknown["time"], unknown["conditions"]) == (None, None, None)
    assert json.loads(CliRunner().invoke(app, ["recipes", "list", "sample/sent", "--json"]).stdout) == [measured]


@pytest.mark.parametrize("width", ["80", "160"])
def test_list_is_a_table_that_fits_the_terminal(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    header, *lines = CliRunner().invoke(app, ["recipes", "list"]).stdout.splitlines()
    assert header.split() == ["recipe", "description", "expected", "score", "time"]
    assert all(len(line) <= int(width) for line in lines)
    rows = {line.split()[0]: line for line in lines if not line.startswith(" ")}
    assert list(rows) == list(shipped_recipes())
    assert rows["sample/sentiment"].endswith("6 s")
    assert "not measured" not in rows["glue/qqp"]
    assert CliRunner().invoke(app, ["recipes", "list", "no such recipe"]).stdout == ""


def test_show_output_loads_to_the_same_recipe() -> None:
    Path("shown.yaml").write_text(show_recipe("glue/cola", ["training.epochs=1"]), "utf-8")
    assert load_recipe("shown.yaml") == load_recipe("glue/cola", ["training.epochs=1"])


@pytest.mark.parametrize("name", shipped_recipes())
def test_show_describes_each_key_and_its_output_is_valid_and_loads_to_the_same_recipe(name: str) -> None:
    kind = "pretrain" if name.startswith("pretrain/") else "finetune"
    loaded = load_any(name)
    one = loaded.base if isinstance(loaded, Search) else loaded
    recipes = recipes_by_name(one).values() if isinstance(one, Suite | Grid) else [one]
    documents = show_recipe(name).split("---\n")
    shown = list(zip(documents, show_recipe(name, comments=False).split("---\n"), recipes, strict=True))
    for document, plain, recipe in shown[:3]:  # of a grid's many points, which differ in single values
        assert schema_problems(document, kind) == []
        Path("shown.yaml").write_text(document, "utf-8")
        assert load_single_recipe("shown.yaml") == recipe
        whole = dump_search(loaded) if isinstance(loaded, Search) else dump_recipe(recipe)
        assert plain.removeprefix(f"# {plain.partition(chr(10))[0][2:]}\n") == whole
        section = type(recipe).model_fields["training"].annotation
        assert section is not None
        for key, field in section.model_fields.items():
            assert re.search(rf"^  {key}: .+  # {re.escape(field.description)}$", document, re.MULTILINE), key


def test_show_puts_section_descriptions_above_sections_and_no_comments_turns_them_off() -> None:
    call = partial(CliRunner().invoke, app)
    shown, plain = (call(["recipes", "show", "pretrain/novels", *words]).stdout for words in ([], ["--no-comments"]))
    assert shown.startswith("# The pretraining text\ncorpus:\n")
    assert "\n\n# The pretraining objective\nobjective:\n  kind: masked_lm  # masked_lm (BERT), " in shown
    assert "- max_length: 32  # maximum sequence length in tokens\n" in shown
    assert "#" not in plain
    assert plain == dump_recipe(load_pretrain_recipe("pretrain/novels"))


@pytest.mark.parametrize("name", ["a\x85b", "a\nb", "a # b", "#", "'q\"", "x" * 5000, "- a: b", "null", "\u2028é\t"])
def test_show_survives_odd_values(name: str) -> None:
    recipe = load_recipe("glue/cola")
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": name})})
    Path("shown.yaml").write_text(dump_annotated(recipe), "utf-8")
    assert load_recipe("shown.yaml") == recipe


def test_copy_keeps_the_comments_and_overwrites_nothing() -> None:
    copy_recipe("glue/cola", Path("new/mine.yaml"))
    assert Path("new/mine.yaml").read_text("utf-8") == shipped_recipes()["glue/cola"].read_text("utf-8")
    with pytest.raises(UsageError, match="exists"):
        copy_recipe("glue/rte", Path("new/mine.yaml"))
    assert load_any("new/mine.yaml") == load_any("glue/cola")


@pytest.mark.parametrize(("name", "kind"), [("glue/cola", "finetune"), ("pretrain/tiny", "pretrain")])
def test_copy_with_schema_references_the_file_next_to_it(name: str, kind: str) -> None:
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
    assert "not this version's schema" in refused.stderr
    assert not Path("new/three.yaml").exists()


def test_check_reports_each_recipe_and_exits_with_2_if_one_is_invalid() -> None:
    Path("wrong.yaml").write_text("task: glue/sst2\ntraining: {epoch: 3}\n", "utf-8")
    found = check_recipes(["glue/sst2", "wrong.yaml", "pretrain/tiny", "glue"])
    assert [name for name, problems in found.items() if problems] == ["wrong.yaml"]
    result = CliRunner().invoke(app, ["recipes", "check", "glue/sst2", "wrong.yaml"])
    assert result.exit_code == 2
    assert "glue/sst2: ok" in result.stdout
    assert "wrong.yaml:2" in result.stderr
    assert CliRunner().invoke(app, ["recipes", "check", "glue", "training.epochs=x"]).exit_code == 2
    assert CliRunner().invoke(app, ["recipes", "check", "training.epochs=1"]).exit_code == 2


def test_diff_lists_key_and_values_of_recipes_and_runs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(show_recipe("glue/sst2", ["training.epochs=7"]), "utf-8")
    assert compare_recipes("glue/sst2", str(run)) == [("training.epochs", "3.0", "7.0")]
    with pytest.raises(UsageError, match="suite"):
        compare_recipes("glue", "glue/sst2")


def test_completion_of_names_and_keys() -> None:
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
        ("bertcli finetune glue/sts", "glue/stsb"),
        ("bertcli finetune own.yaml task.text_c", "task.text_columns="),
    ],
)
def test_completion_in_the_shell(typed: str, offered: str) -> None:
    env = {"_BERTCLI_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    assert CliRunner().invoke(app, [], prog_name="bertcli", env=env).stdout.split() == [offered]


def test_env_prints_text_and_json() -> None:
    env: dict[str, Any] = json.loads(CliRunner().invoke(app, ["env", "--json"]).stdout)
    assert env["packages"].keys() >= {"torch", "transformers"}
    assert env["precision"] == env["precisions"][0]
    assert env["precisions"] in (["fp32"], ["bf16", "fp32"])
    assert (env["gpus"], env["gpu_driver"]) == ([], None)
    assert "command" not in env
    assert "torch" in CliRunner().invoke(app, ["env"]).stdout


@pytest.mark.parametrize(("bf16", "precisions"), [(True, ["bf16", "fp16", "fp32"]), (False, ["fp16", "fp32"])])
def test_env_lists_gpus_with_memory_driver_and_precisions(
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
    env: dict[str, Any] = json.loads(CliRunner().invoke(app, ["env", "--json"]).stdout)
    assert env["gpus"] == [{"name": "Card 9", "memory_gb": 141.2}] * 2
    assert (env["gpu_driver"], env["precisions"], env["precision"]) == ("570.86.15", precisions, precisions[0])
    lines = CliRunner().invoke(app, ["env"]).stdout.splitlines()
    assert "gpus           Card 9 (141.2 GB), Card 9 (141.2 GB)" in lines
    assert f"precisions     {', '.join(precisions)}" in lines
    assert "gpu_driver     570.86.15" in lines


def test_show_prints_a_multitask_run_as_it_was_trained(tmp_path: Path) -> None:
    text = "suite: [a, b]\nmultitask: {sampling: equal}\n\n# a\n# training:\n#   max_steps: 2\n"
    (tmp_path / "recipe.yaml").write_text(text)
    assert show_recipe(str(tmp_path)) == text
    with pytest.raises(UsageError, match="leave out the overrides"):
        show_recipe(str(tmp_path), ["training.max_steps=3"])
