"""`bertcli submit`: what is written, asked of Slurm and refused; `sbatch` and `squeue` are stand-ins here."""

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
from bertcli.commands import submit as program
from bertcli.recipe.load import shipped_recipes, shipped_recipes_folder

EXAMPLES = sorted((shipped_recipes_folder() / "slurm").iterdir())
SEEDS = ["sample/sentiment", "training.seed=[3,1,4]", "--array", "--run", "runs/seeds"]

Stand = Callable[..., None]


def submit(*words: str) -> Result:
    return CliRunner().invoke(app, ["submit", *words])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Stand:
    """Give the machine programs of Slurm, each with a shell line for what it does; `sbatch` numbers jobs from 1."""
    folder = Path("bin").resolve()
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def stand(**lines: str) -> None:
        counts = f'echo "$@" >> {folder}/asked; wc -l < {folder}/asked'
        for name, line in ({"sbatch": counts, "squeue": "true"} | lines).items():
            (folder / name).write_text(f"#!/bin/sh\n{line}\n")
            (folder / name).chmod(0o755)

    stand()
    return stand


def asked() -> list[str]:
    return Path("bin/asked").read_text().splitlines()


def test_a_job_reads_the_recipe_that_was_submitted(stand_in: Stand, write_recipe: Callable[..., Path]) -> None:
    mine = write_recipe("extends: sample/sentiment\n", "mine.yaml")
    result = submit("mine.yaml", "training.epochs=2", "--run", "runs/one", "--time", "1:00:00", "--json")
    assert result.exit_code == 0, result.stderr
    slurm = Path("runs/one/slurm").resolve()
    told = json.loads(result.stdout)
    assert told == {"run": "runs/one", "job": "1", "script": f"{slurm}/job.sh", "log": f"{slurm}/1.log"}
    assert "bertcli report runs/one" in result.stderr
    assert asked() == [f"--parsable {slurm}/job.sh"]
    assert " finetune runs/one/recipe.yaml --run runs/one &" in (slurm / "job.sh").read_text()
    assert "epochs: 2.0" in Path("runs/one/recipe.yaml").read_text()
    assert {path.name for path in Path("runs/one").iterdir()} == {"recipe.yaml", "slurm"}

    write_recipe("extends: sample/topics\n", mine.name)
    refused = submit("mine.yaml", "--run", "runs/one")
    assert refused.exit_code == 2
    assert "holds a run of another recipe" in refused.stderr
    assert submit("mine.yaml", "--run", "runs/one", "--overwrite").exit_code == 0


def test_nothing_is_removed_for_a_job_that_the_cluster_does_not_take(stand_in: Stand) -> None:
    words = ["sample/sentiment", "--run", "run"]
    assert submit(*words).exit_code == 0
    Path("run/results.json").write_text("{}")
    stand_in(sbatch="echo invalid partition >&2; exit 1")
    refused = submit(*words, "--overwrite")
    assert refused.exit_code == 1
    assert "invalid partition" in refused.stderr
    assert Path("run/results.json").is_file()


def test_several_seeds_become_an_array_and_a_job_that_gathers(stand_in: Stand) -> None:
    assert submit(*SEEDS).exit_code == 0
    slurm = Path("runs/seeds/slurm").resolve()
    assert asked() == [f"--parsable {slurm}/job.sh", f"--parsable --dependency=afterany:1 {slurm}/gather.sh"]
    job, gather = ((slurm / name).read_text() for name in ("job.sh", "gather.sh"))
    for number, seed in enumerate((3, 1, 4)):
        words = f"finetune runs/seeds/recipe.yaml training.seed={seed} --run runs/seeds/seed-{seed}"
        assert f"  {number}) words=({words}) ;;" in job
    assert "#SBATCH --array=0-2" in job
    assert "--array" not in [line for line in gather.splitlines() if line.startswith("#SBATCH")]
    assert " finetune runs/seeds/recipe.yaml --run runs/seeds &" in gather


def test_recipes_of_a_suite_run_at_once_unless_they_wait_for_one_another(stand_in: Stand) -> None:
    words = ["glue", "suite=[rte,mnli,cola]", "start_from.rte=mnli", "--array", "--run", "runs/part"]
    assert submit(*words).exit_code == 0
    job, gather = (Path("runs/part/slurm", name).read_text() for name in ("job.sh", "gather.sh"))
    assert "0) words=(finetune runs/part/glue-mnli/recipe.yaml --run runs/part/glue-mnli)" in job
    assert "1) words=(finetune runs/part/glue-cola/recipe.yaml --run runs/part/glue-cola)" in job
    assert "glue-rte" not in job
    assert " finetune glue 'suite=[rte,mnli,cola]' start_from.rte=mnli --run runs/part &" in gather
    assert not Path("runs/part/glue-rte").exists()
    Path("runs/part/glue-rte").mkdir()
    assert "glue-rte starts from another run" in submit(*words, "--overwrite").stderr


def test_points_of_a_grid_run_at_once_and_the_gathering_job_reads_the_grid() -> None:
    work = program.plan_work("sample/topics", ["training.epochs=[1,2]", "training.seed=[1,2]"], Path("runs/grid"))
    assert [(name, words[-1]) for name, words in work.parts] == [
        (f"epochs={number}", f"runs/grid/epochs={number}") for number in (1, 2)
    ]
    assert work.whole[1][:3] == ["finetune", "sample/topics", "training.epochs=[1,2]"]
    assert list(work.recipes) == [Path("runs/grid/epochs=1"), Path("runs/grid/epochs=2")]


def test_tasks_learned_together_are_one_run(stand_in: Stand) -> None:
    words = ["strategies/together", "model.name=x", "--run", "both"]
    assert submit(*words).exit_code == 0
    assert {path.name for path in Path("both").iterdir()} == {"slurm"}
    assert " finetune strategies/together model.name=x --run both" in Path("both/slurm/job.sh").read_text()
    assert "found 0 run for --array" in submit(*words, "--array").stderr


def test_pretraining_is_known_by_its_recipe() -> None:
    assert " pretrain runs/pretrain-tiny/recipe.yaml " in submit("pretrain/tiny", "--print").stdout


def test_a_script_is_never_overwritten(stand_in: Stand) -> None:
    words = ["sample/sentiment", "--run", "run"]
    for more in ([], [], ["--time", "60"], ["--time", "60"]):
        assert submit(*words, *more).exit_code == 0
    job = f"--parsable {Path.cwd()}/run/slurm/job"
    assert asked() == [f"{job}.sh", f"{job}.sh", f"{job}-2.sh", f"{job}-2.sh"]


def test_two_jobs_of_one_run_are_refused(stand_in: Stand) -> None:
    stand_in(squeue=f"echo 7 {Path.cwd()}/run/slurm/job-3.sh; echo 8 other.sh")
    result = submit("sample/sentiment", "--run", "run")
    assert result.exit_code == 2
    assert "scancel 7" in result.stderr
    assert not Path("run").exists()


def test_what_sbatch_refuses_is_told(stand_in: Stand) -> None:
    stand_in(sbatch="echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    result = submit("sample/sentiment", "--partition", "nope")
    assert result.exit_code == 1
    assert "invalid partition specified: nope" in result.stderr
    assert "--partition" in result.stderr


def test_an_array_that_cannot_be_gathered_is_not_lost(stand_in: Stand) -> None:
    stand_in(sbatch='case "$*" in *afterany*) echo full >&2; exit 1;; esac; echo 31')
    result = submit(*SEEDS)
    assert result.exit_code == 1
    assert f"sbatch --dependency=afterany:31 {Path.cwd()}/runs/seeds/slurm/gather.sh" in result.stderr


def test_print_shows_and_writes_nothing() -> None:
    result = submit(*SEEDS, "--print", "--mirror", ".")
    assert result.exit_code == 0
    assert result.stdout.count("#!/bin/bash") == 2
    assert f"export BERTCLI_MIRROR={Path.cwd()}\n" in result.stdout
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample/sentiment"], "found no sbatch here"),
        (["sample/sentiment", "--time", "2h"], "--time 2h, expected minutes (90)"),
        (["sample/sentiment", "--nodes", "0"], "--nodes"),
        (
            ["sample/sentiment", "--array", "--print"],
            "found 1 run for --array, expected several: training.seed=[1,2,3], a grid",
        ),
        (["sample/sentiment", "--sbatch", "time=3", "--print"], "sets time itself"),
        (["sample/sentiment", "training.epoch=3"], "Did you mean"),
        (["sample/sentimant"], "Did you mean sample/sentiment"),
        (["sample/sentiment", "--mirror", "nowhere"], "no mirror folder"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    result = submit(*words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(Path().iterdir())


def test_what_a_job_without_a_network_would_miss_is_told(
    stand_in: Stand, monkeypatch: pytest.MonkeyPatch, encoder: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "cache")
    words = ("glue/rte", f"model.name={encoder}")
    result = submit(*words, "--run", "one")
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stderr.split())
    assert "holds datasets/nyu-mll/glue, and jobs use no network: bertcli fetch glue/rte" in said
    Path("mirror/datasets/nyu-mll/glue").mkdir(parents=True)
    assert "no network" not in submit(*words, "--run", "two", "--mirror", "mirror").stderr
    Path("cache/datasets--nyu-mll--glue").mkdir(parents=True)
    assert "no network" not in submit(*words, "--run", "three").stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_shipped_scripts_name_no_place_and_end_as_those_of_submit(path: Path) -> None:
    text = path.read_text("utf-8")
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    assert not re.search(r"/(home|work|tmp)\b", text)
    assert not [line for line in text.splitlines() if line.startswith("#SBATCH") and "$" in line]
    shown = submit("sample/sentiment", "--print").stdout
    ours, theirs = (whole.partition("step=$!")[2].replace('"', "") for whole in (text, shown))
    assert re.sub("job=.*", "", ours).strip() == re.sub("job=.*", "", theirs).strip()


def test_scripts_are_no_recipes() -> None:
    assert len(EXAMPLES) == 3
    assert not [name for name in shipped_recipes() if name.startswith("slurm")]
