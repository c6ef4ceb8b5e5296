"""Two processes learn, score and save what one does; the failure of one ends both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from bertcli.data.sample import sample_documents
from bertcli.runs.history import read_records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def small(encoder: Path, reviews: Path) -> str:
    """A recipe whose batches and evaluation rows do not divide by two."""
    Path("small.yaml").write_text(
        f"task: {{files: {{train: {reviews}}}, text_columns: [text], labels: [negative, positive]}}\n"
        f"model: {{name: {encoder}, dropout: 0}}\ndata: {{max_length: 16, max_eval_examples: 7}}\n"
        "training: {max_steps: 20, global_batch_size: 7, learning_rate: 1e-3, seed: 1}\n"
        "evaluation: {every_steps: 10}\nhardware: {device: cpu, log_every_steps: 5}\n",
        "utf-8",
    )
    return "small.yaml"


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "--"],
    # Without GPUs it starts several processes by MPI alone, or if told that there are some.
    "accelerate": [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "-m",
    ],
}


def command(processes: int, *arguments: str, launcher: str = "") -> list[str]:
    if arguments[0] in ("finetune", "pretrain"):  # bf16, where it is had, rounds too much to compare
        verb, name, *others = arguments
        arguments = (verb, name, "hardware.precision=fp32", *others)
    if launcher and processes > 1:
        return [sys.executable, "-m", *LAUNCHERS[launcher], "bertcli", *arguments]
    return [
        sys.executable,
        "-m",
        "bertcli",
        *arguments,
        *(["--processes", str(processes)] if processes > 1 else []),
    ]


def call(processes: int, *arguments: str, launcher: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "BERTCLI_CACHE": f"cache-of-{processes}"}
    asked = command(processes, *arguments, launcher=launcher)
    return subprocess.run(asked, capture_output=True, text=True, env=environment, check=False, timeout=200)


def assert_alike(one: str, two: str, without_gradient: tuple[str, ...] = ()) -> None:
    """Losses, scores and weights, within rounding.

    Args:
        without_gradient: further weights that the loss does not depend on.
    """
    for history in ("train.jsonl", "eval.jsonl"):
        records = [read_records(Path(run, history)) for run in (one, two)]
        assert [record["step"] for record in records[0]] == [record["step"] for record in records[1]]
        for first, second in zip(*records, strict=True):
            for name in first.keys() - {"examples_per_second", "tokens_per_second"}:
                assert second[name] == pytest.approx(first[name], rel=1e-4), (history, name)
    weights = [load_file(Path(run, "model", "model.safetensors")) for run in (one, two)]
    for name, tensor in weights[0].items():
        # Softmax does not feel a key bias: its gradient is rounding noise, which Adam blows up to whole steps.
        if not name.endswith(("key.bias", *without_gradient)):
            assert torch.allclose(tensor, weights[1][name], atol=1e-4), name
    results = [json.loads(Path(run, "results.json").read_text()) for run in (one, two)]
    for name in ("total_steps", "best_step", "num_train_examples"):
        assert results[0][name] == results[1][name], name


@pytest.fixture
def questions(encoder: Path) -> str:
    """A recipe for spans of passages in windows, with batches that do not divide by two."""
    Path("questions.yaml").write_text(
        f"extends: sample/questions\nmodel: {{name: {encoder}, dropout: 0}}\n"
        "data: {max_length: 24, doc_stride: 8, max_train_examples: 60, max_eval_examples: 21}\n"
        "training: {max_steps: 20, global_batch_size: 7, learning_rate: 1e-3, seed: 1}\n"
        "evaluation: {every_steps: 10}\nhardware: {device: cpu, log_every_steps: 5}\n",
        "utf-8",
    )
    return "questions.yaml"


SHARDED = ("hardware.shard=true",)
STAGES = ("training.strategy=gradual", "training.unfreeze_every_steps=5")
FEATURES = ("training.strategy=features",)


@pytest.mark.parametrize(
    ("launcher", "overrides"),
    [("", ()), ("torchrun", ()), ("accelerate", ()), ("", STAGES), ("", SHARDED), ("", FEATURES)],
)
def test_two_processes_fine_tune_as_one(small: str, launcher: str, overrides: tuple[str, ...]) -> None:
    for processes, run in ((1, "one"), (2, "two")):
        made = call(processes, "finetune", small, *overrides, "--run", run, "--json", launcher=launcher)
        assert made.returncode == 0, made.stderr
        assert len(made.stdout.splitlines()) == 1, made.stdout
        assert made.stderr.count("20/20  validation") == 1
        assert len(torch.load(f"{run}/checkpoints/step-00000020/random.pt", weights_only=True)) == processes
    assert_alike("one", "two")


def test_a_divided_model_learns_in_bf16_as_well(small: str) -> None:
    for processes, run, more in ((1, "one", ()), (2, "two", (*SHARDED, "hardware.precision=bf16"))):
        made = call(processes, "finetune", small, *more, "--run", run)
        assert made.returncode == 0, made.stderr
    one, two = (json.loads(Path(run, "results.json").read_text())["metrics"]["validation"] for run in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=0.05)
    saved = load_file("two/model/model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_two_processes_learn_from_a_teacher_as_one(small: str) -> None:
    assert call(1, "finetune", small, "--run", "teacher").returncode == 0
    taught = (*STAGES, "training.teacher=teacher", "training.teacher_hidden_weight=2")
    for processes, run in ((1, "one"), (2, "two")):
        made = call(processes, "finetune", small, *taught, "--run", run)
        assert made.returncode == 0, made.stderr
    assert_alike("one", "two")


def test_two_processes_answer_questions_as_one(questions: str) -> None:
    for processes, run in ((1, "one"), (2, "two")):
        made = call(processes, "finetune", questions, "--run", run)
        assert made.returncode == 0, made.stderr
    # What is added to the logits of all tokens alike, a softmax over the tokens does not feel.
    assert_alike("one", "two", without_gradient=("layer.1.output.LayerNorm.bias", "qa_outputs.bias"))


@pytest.mark.parametrize("overrides", [(), SHARDED])
def test_two_processes_pretrain_as_one(overrides: tuple[str, ...]) -> None:
    Path("corpus.txt").write_text("\n\n".join(sample_documents(300)))
    Path("pre.yaml").write_text(
        "corpus: {sources: [{files: corpus.txt}], held_out_share: 0.1}\ntokenizer: {vocabulary_size: 500}\n"
        "model: {size: null, dropout: 0, fields: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}}\n"
        "phases: [{max_length: 32}]\n"
        "training: {max_steps: 10, global_batch_size: 9, learning_rate: 1e-3}\n"
        "evaluation: {every_steps: 5}\nhardware: {device: cpu, log_every_steps: 5}\n"
    )
    for processes, run in ((1, "one"), (2, "two")):
        made = call(processes, "pretrain", "pre.yaml", *overrides, "--run", run)
        assert made.returncode == 0, made.stderr
    assert_alike("one", "two")


@pytest.mark.parametrize("task", ["sample/entities", "sample/questions"])
def test_each_row_is_scored_once_by_however_many_processes(encoder: Path, task: str) -> None:
    overrides = [f"model.name={encoder}", "model.dropout=0", "training.max_steps=2", "data.max_eval_examples=33"]
    for processes, run in ((1, "one"), (2, "two")):
        made = call(processes, "finetune", task, *overrides, "data.max_train_examples=40", "--run", run)
        assert made.returncode == 0, made.stderr
    scores = [json.loads(Path(run, "results.json").read_text())["metrics"]["validation"] for run in ("one", "two")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_the_failure_of_one_process_ends_all_with_its_message(small: str) -> None:
    Path("sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from bertcli.training.trainer import _Run\n"
        "    def fail(self, *_): raise RuntimeError('rank one fell over')\n"
        "    _Run._log = fail\n"
    )
    started = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    made = subprocess.run(
        command(2, "finetune", small, "--run", "run"), capture_output=True, text=True, env=environment, timeout=90
    )
    assert made.returncode == 1
    assert "process 1: error: unexpected RuntimeError: rank one fell over" in made.stderr
    assert time.monotonic() - started < 60
    assert not Path("run/results.json").exists()


def test_a_point_of_a_grid_that_fails_for_the_first_process_alone_ends_both(small: str) -> None:
    occupied = Path("grid/learning_rate=0.001/thesis.tex")
    occupied.parent.mkdir(parents=True)
    occupied.write_text("years of work")
    made = call(2, "finetune", small, "training.learning_rate=[1e-3, 2e-3]", "--run", "grid")
    assert made.returncode == 2
    assert "learning_rate=0.001 failed" in made.stderr
    assert "error: grid/learning_rate=0.001 is not empty and holds no run" in made.stderr
    assert [path.name for path in Path("grid").rglob("*")] == ["learning_rate=0.001", "thesis.tex"]


def test_signals_stop_all_processes_alike_and_the_run_ends_as_an_undisturbed_one(small: str) -> None:
    words = ["finetune", small, "training.max_steps=60", "hardware.log_every_steps=5", "model.dropout=0.1", "--run"]
    Path("slowly").mkdir()
    Path("slowly/sitecustomize.py").write_text(
        "import os, time\n"
        "if 'RANK' in os.environ:\n"
        "    from bertcli.training.trainer import _Run\n"
        "    agreed = _Run._agreed\n"
        "    _Run._agreed = lambda *given: time.sleep(0.1) or agreed(*given)\n"
    )
    slowly = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"slowly:{os.environ.get('PYTHONPATH', '')}"}
    history = Path("parts/train.jsonl")
    for number, code in ((signal.SIGTERM, 143), (signal.SIGUSR1, 85)):
        before, deadline = len(read_records(history)), time.monotonic() + 150
        process = subprocess.Popen(
            command(2, *words, "parts"), stderr=subprocess.PIPE, text=True, env=os.environ | slowly
        )
        while len(read_records(history)) == before and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=90)
        assert process.returncode == code, errors
        assert "the same command goes on" in errors
        checkpoint = sorted(Path("parts/checkpoints").iterdir())[-1]
        assert len(torch.load(checkpoint / "random.pt", weights_only=True)) == 2
    for run in ("parts", "whole"):
        made = call(2, *words, run)
        assert made.returncode == 0, made.stderr
        assert ("resuming parts after step" in made.stderr) == (run == "parts")
    parts, whole = (load_file(f"{run}/model/model.safetensors") for run in ("parts", "whole"))
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    assert read_records(Path("parts/eval.jsonl")) == read_records(Path("whole/eval.jsonl"))


def test_two_processes_learn_several_tasks_as_one(encoder: Path) -> None:
    Path("suite.yaml").write_text(
        f"suite: [sample/sentiment, sample/choices]\ntogether: {{kind: equal}}\n"
        f"model: {{name: {encoder}, dropout: 0}}\n"
        "data: {max_length: 64, max_train_examples: 40, max_eval_examples: 7}\n"
        "training: {max_steps: 10, global_batch_size: 7, learning_rate: 1e-3, epochs: 1, seed: 1}\n"
        "evaluation: {every_steps: 5}\nhardware: {device: cpu, log_every_steps: 5}\n",
        "utf-8",
    )
    for processes, run in ((1, "one"), (2, "two")):
        made = call(processes, "finetune", "suite.yaml", "--run", run)
        assert made.returncode == 0, made.stderr
    scores = [json.loads(Path(run, "results.json").read_text())["metrics"]["validation"] for run in ("one", "two")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


def test_two_nodes_divide_a_model_and_one_process_goes_on_with_it_whole(small: str) -> None:
    made = call(1, "finetune", small, "--run", "one")
    assert made.returncode == 0, made.stderr
    Path("sitecustomize.py").write_text(
        "import os\n"
        "if 'RANK' in os.environ:\n"
        "    from bertcli.training.trainer import _Run\n"
        "    _Run._agreed = lambda run, request, step: 15 if run.progress.step >= 10 else None\n"
    )
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{Path.cwd()}:{os.environ.get('PYTHONPATH', '')}",
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    meeting = ["--master-addr", "127.0.0.1", "--master-port", "29613"]
    asked = ["-m", "--", "bertcli", "finetune", small, *SHARDED, "hardware.precision=fp32", "--run", "two"]
    nodes = [
        subprocess.Popen(
            [*torchrun, *meeting, "--node-rank", str(rank), *asked],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    told = [node.communicate(timeout=120)[1] for node in nodes]
    assert "stopped after step 10" in told[0], told
    AutoModelForSequenceClassification.from_pretrained("two/model")
    Path("sitecustomize.py").unlink()
    made = call(1, "finetune", small, "--run", "two")
    assert "resuming two after step 10" in made.stderr
    assert_alike("one", "two")
