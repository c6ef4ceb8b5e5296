"""`bertcli submit`: scripts, submitted jobs and errors, with fake `sbatch` and `squeue`."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bertcli.cli.main import app
from bertcli.commands.submit import plan_jobs
from bertcli.recipe.load import shipped_recipes, shipped_recipes_folder

EXAMPLES = sorted((shipped_recipes_folder() / "slurm").iterdir())
SEEDS = ["sample/sentiment", "training.seed=[3,1,4]", "--array", "--run", "runs/seeds"]

FakeSlurm = Callable[..., None]


def submit(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["submit", *arguments])


@pytest.fixture
def fake_slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Install fake Slurm programs; call it to replace a program by a shell line. `sbatch` numbers jobs from 1."""
    folder = Path("bin").resolve()
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def install(**lines: str) -> None:
        log_and_count = f'echo "$@" >> {folder}/sbatch.log; wc -l < {folder}/sbatch.log'
        for name, line in ({"sbatch": log_and_count, "squeue": "true"} | lines).items():
            (folder / name).write_text(f"#!/bin/sh\n{line}\n")
            (folder / name).chmod(0o755)

    install()
    return install


def sbatch_calls() -> list[str]:
    return Path("bin/sbatch.log").read_text().splitlines()


def test_submit_runs_the_recipe_as_it_was_when_submitted(
    fake_slurm: FakeSlurm, write_recipe: Callable[..., Path]
) -> None:
    mine = write_recipe("extends: sample/sentiment\n", "mine.yaml")
    result = submit("mine.yaml", "training.epochs=2", "--run", "runs/one", "--time", "1:00:00", "--json")
    assert result.exit_code == 0, result.stderr
    slurm = Path("runs/one/slurm").resolve()
    assert json.loads(result.stdout) == {
        "run": "runs/one",
        "job": "1",
        "script": f"{slurm}/job.sh",
        "log": f"{slurm}/1.log",
    }
    assert "bertcli report runs/one" in result.stderr
    assert sbatch_calls() == [f"--parsable {slurm}/job.sh"]
    assert " finetune runs/one/recipe.yaml --run runs/one &" in (slurm / "job.sh").read_text()
    assert "epochs: 2.0" in Path("runs/one/recipe.yaml").read_text()
    assert {path.name for path in Path("runs/one").iterdir()} == {"recipe.yaml", "slurm"}

    write_recipe("extends: sample/topics\n", mine.name)
    rejected = submit("mine.yaml", "--run", "runs/one")
    assert rejected.exit_code == 2
    assert "holds a run created with a different recipe" in rejected.stderr
    assert submit("mine.yaml", "--run", "runs/one", "--overwrite").exit_code == 0


def test_submit_overwrite_removes_nothing_if_the_job_is_rejected(fake_slurm: FakeSlurm) -> None:
    arguments = ["sample/sentiment", "--run", "run"]
    assert submit(*arguments).exit_code == 0
    Path("run/results.json").write_text('{"run": "run"}')
    fake_slurm(sbatch="echo invalid partition >&2; exit 1")
    rejected = submit(*arguments, "--overwrite")
    assert rejected.exit_code == 1
    assert "invalid partition" in rejected.stderr
    assert Path("run/results.json").is_file()


def test_submit_array_of_seeds_and_a_job_that_collects_their_results(fake_slurm: FakeSlurm) -> None:
    assert submit(*SEEDS).exit_code == 0
    slurm = Path("runs/seeds/slurm").resolve()
    assert sbatch_calls() == [f"--parsable {slurm}/job.sh", f"--parsable --dependency=afterany:1 {slurm}/gather.sh"]
    job, gather = ((slurm / name).read_text() for name in ("job.sh", "gather.sh"))
    for index, seed in enumerate((3, 1, 4)):
        arguments = f"finetune runs/seeds/recipe.yaml training.seed={seed} --run runs/seeds/seed-{seed}"
        assert f"  {index}) arguments=({arguments}) ;;" in job
    assert "#SBATCH --array=0-2" in job
    assert "--array" not in [line for line in gather.splitlines() if line.startswith("#SBATCH")]
    assert " finetune runs/seeds/recipe.yaml --run runs/seeds &" in gather


def test_submit_array_of_a_suite_contains_only_independent_recipes(fake_slurm: FakeSlurm) -> None:
    arguments = ["glue", "suite=[rte,mnli,cola]", "start_from.rte=mnli", "--array", "--run", "runs/part"]
    assert submit(*arguments).exit_code == 0
    job, gather = (Path("runs/part/slurm", name).read_text() for name in ("job.sh", "gather.sh"))
    assert "0) arguments=(finetune runs/part/glue-mnli/recipe.yaml --run runs/part/glue-mnli)" in job
    assert "1) arguments=(finetune runs/part/glue-cola/recipe.yaml --run runs/part/glue-cola)" in job
    assert "glue-rte" not in job
    assert " finetune glue 'suite=[rte,mnli,cola]' start_from.rte=mnli --run runs/part &" in gather
    assert not Path("runs/part/glue-rte").exists()
    Path("runs/part/glue-rte").mkdir()
    assert "glue-rte, which starts from the model of another run" in submit(*arguments, "--overwrite").stderr


def test_plan_jobs_of_a_grid_trains_each_point_and_then_reads_the_grid() -> None:
    plan = plan_jobs("sample/topics", ["training.epochs=[1,2]", "training.seed=[1,2]"], Path("runs/grid"))
    assert [(command.name, command.arguments[-1]) for command in plan.array_commands] == [
        (f"epochs={epochs}", f"runs/grid/epochs={epochs}") for epochs in (1, 2)
    ]
    assert plan.command.arguments[:3] == ["finetune", "sample/topics", "training.epochs=[1,2]"]
    assert list(plan.recipes) == [Path("runs/grid/epochs=1"), Path("runs/grid/epochs=2")]


def test_plan_jobs_of_folds_trains_each_fold_and_then_scores_all() -> None:
    plan = plan_jobs("sample/sentiment", ["data.folds=2", "training.epochs=[1,2]"], Path("runs/cv"))
    assert [command.name for command in plan.array_commands] == [
        f"epochs={epochs}/fold-{fold}" for epochs in (1, 2) for fold in (1, 2)
    ]
    plan = plan_jobs("sample/sentiment", ["data.folds=2"], Path("runs/cv"))
    assert [command.arguments for command in plan.array_commands] == [
        ["finetune", f"runs/cv/fold-{fold}/recipe.yaml", "--run", f"runs/cv/fold-{fold}"] for fold in (1, 2)
    ]
    assert plan.command.arguments == ["finetune", "sample/sentiment", "data.folds=2", "--run", "runs/cv"]
    assert list(plan.recipes) == [Path("runs/cv/fold-1"), Path("runs/cv/fold-2")]


def test_submit_multitask_as_one_run(fake_slurm: FakeSlurm) -> None:
    arguments = ["strategies/multitask", "model.name=x", "--run", "both"]
    assert submit(*arguments).exit_code == 0
    assert {path.name for path in Path("both").iterdir()} == {"slurm"}
    assert " finetune strategies/multitask model.name=x --run both" in Path("both/slurm/job.sh").read_text()
    assert "--array requires at least two independent runs, found 0" in submit(*arguments, "--array").stderr


def test_submit_pretrains_a_pretraining_recipe() -> None:
    assert " pretrain runs/pretrain-tiny/recipe.yaml " in submit("pretrain/tiny", "--print").stdout


def test_submit_never_overwrites_a_script(fake_slurm: FakeSlurm) -> None:
    arguments = ["sample/sentiment", "--run", "run"]
    for options in ([], [], ["--time", "60"], ["--time", "60"]):
        assert submit(*arguments, *options).exit_code == 0
    job = f"--parsable {Path.cwd()}/run/slurm/job"
    assert sbatch_calls() == [f"{job}.sh", f"{job}.sh", f"{job}-2.sh", f"{job}-2.sh"]


def test_submit_rejects_a_second_job_for_the_same_run(fake_slurm: FakeSlurm) -> None:
    fake_slurm(squeue=f"echo 7 {Path.cwd()}/run/slurm/job-3.sh; echo 8 other.sh")
    result = submit("sample/sentiment", "--run", "run")
    assert result.exit_code == 2
    assert "scancel 7" in result.stderr
    assert not Path("run").exists()


def test_submit_reports_errors_of_sbatch(fake_slurm: FakeSlurm) -> None:
    fake_slurm(sbatch="echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    result = submit("sample/sentiment", "--partition", "nope")
    assert result.exit_code == 1
    assert "invalid partition specified: nope" in result.stderr
    assert "--partition" in result.stderr


def test_submit_says_how_to_collect_an_array_if_the_second_job_is_rejected(fake_slurm: FakeSlurm) -> None:
    fake_slurm(sbatch='case "$*" in *afterany*) echo full >&2; exit 1;; esac; echo 31')
    result = submit(*SEEDS)
    assert result.exit_code == 1
    assert f"sbatch --dependency=afterany:31 {Path.cwd()}/runs/seeds/slurm/gather.sh" in result.stderr


def test_submit_print_writes_nothing() -> None:
    result = submit(*SEEDS, "--print", "--mirror", ".")
    assert result.exit_code == 0
    assert result.stdout.count("#!/bin/bash") == 2
    assert f"export BERTCLI_MIRROR={Path.cwd()}\n" in result.stdout
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample/sentiment"], "found no sbatch on this machine"),
        (["sample/sentiment", "--time", "2h"], "--time 2h, expected minutes (90)"),
        (["sample/sentiment", "--nodes", "0"], "--nodes"),
        (
            ["sample/sentiment", "--array", "--print"],
            "--array requires at least two independent runs, found 1; use several seeds (training.seed=[1,2,3])",
        ),
        (["sample/sentiment", "--sbatch", "time=3", "--print"], "submit` sets time"),
        (["sample/sentiment", "training.epoch=3"], "Did you mean"),
        (["sample/sentimant"], "Did you mean sample/sentiment"),
        (["sample/sentiment", "--mirror", "nowhere"], "no mirror folder"),
    ],
)
def test_submit_reports_errors_before_writing_anything(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    result = submit(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(Path().iterdir())


def test_submit_warns_about_datasets_that_are_not_available_offline(
    fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, encoder: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "cache")
    arguments = ("glue/rte", f"model.name={encoder}")
    result = submit(*arguments, "--run", "one")
    assert result.exit_code == 0, result.stderr
    messages = " ".join(result.stderr.split())
    assert "datasets/nyu-mll/glue not found in the mirror or the local cache" in messages
    assert "run bertcli fetch glue/rte" in messages
    Path("mirror/datasets/nyu-mll/glue").mkdir(parents=True)
    assert "no network" not in submit(*arguments, "--run", "two", "--mirror", "mirror").stderr
    Path("cache/datasets--nyu-mll--glue").mkdir(parents=True)
    assert "no network" not in submit(*arguments, "--run", "three").stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_shipped_scripts_have_no_absolute_paths_and_end_like_those_of_submit(path: Path) -> None:
    text = path.read_text("utf-8")
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    assert not re.search(r"/(home|work|tmp)\b", text)
    assert not [line for line in text.splitlines() if line.startswith("#SBATCH") and "$" in line]
    printed = submit("sample/sentiment", "--print").stdout
    shipped_end, submit_end = (script.partition("step=$!")[2].replace('"', "") for script in (text, printed))
    assert re.sub("job=.*", "", shipped_end).strip() == re.sub("job=.*", "", submit_end).strip()


def test_shipped_scripts_are_not_listed_as_recipes() -> None:
    assert len(EXAMPLES) == 3
    assert not [name for name in shipped_recipes() if name.startswith("slurm")]


def test_submit_array_of_a_search_writes_its_recipe_and_shares_its_trials(fake_slurm: FakeSlurm) -> None:
    keys = ["search.epochs={int: [1, 3]}", "search.trials=9"]
    assert submit("sample/sentiment", *keys, "--array", "--jobs", "3", "--run", "runs/search").exit_code == 0
    job, gather = (Path("runs/search/slurm", name).read_text() for name in ("job.sh", "gather.sh"))
    assert "#SBATCH --array=0-2" in job
    assert "  2) arguments=(finetune runs/search/search.yaml --run runs/search) ;;" in job
    assert " finetune runs/search/search.yaml --run runs/search &" in gather
    assert "trials: 9" in Path("runs/search/search.yaml").read_text()
    changed = submit("sample/sentiment", keys[0], "training.warmup_ratio=0.2", "--array", "--run", "runs/search")
    assert changed.exit_code == 2
    assert "runs/search holds a search with a different recipe" in changed.stderr
