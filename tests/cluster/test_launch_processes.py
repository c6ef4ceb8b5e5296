"""Two processes train, score and save the same as one; if one fails, both stop."""

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
    """A recipe with an odd batch size and an odd number of evaluation examples."""
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
    # On a machine without GPUs, accelerate starts several processes only with --multi_gpu or MPI.
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
    if arguments[0] in ("finetune", "pretrain"):  # bf16, where supported, rounds too much to compare
        verb, name, *rest = arguments
        fp32 = () if any(argument.startswith("hardware.precision=") for argument in rest) else (FP32,)
        arguments = (verb, name, *fp32, *rest)
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
    program = command(processes, *arguments, launcher=launcher)
    return subprocess.run(program, capture_output=True, text=True, env=environment, check=False, timeout=200)


def assert_same_training(one: str, two: str, without_gradient: tuple[str, ...] = ()) -> None:
    """Losses, scores and weights are equal within rounding.

    Args:
        without_gradient: additional weights that the loss does not depend on.
    """
    for history in ("train.jsonl", "eval.jsonl"):
        records = [read_records(Path(run, history)) for run in (one, two)]
        assert [record["step"] for record in records[0]] == [record["step"] for record in records[1]]
        for first, second in zip(*records, strict=True):
            for name in first.keys() - {"examples_per_second", "tokens_per_second"}:
                assert second[name] == pytest.approx(first[name], rel=1e-4), (history, name)
    weights = [load_file(Path(run, "model", "model.safetensors")) for run in (one, two)]
    for name, tensor in weights[0].items():
        # Softmax is invariant to a key bias: its gradient is rounding noise, which Adam scales up to full steps.
        if not name.endswith(("key.bias", *without_gradient)):
            assert torch.allclose(tensor, weights[1][name], atol=1e-4), name
    results = [json.loads(Path(run, "results.json").read_text()) for run in (one, two)]
    for name in ("total_steps", "best_step", "num_train_examples"):
        assert results[0][name] == results[1][name], name


@pytest.fixture
def questions(encoder: Path) -> str:
    """A question-answering recipe with sliding windows and an odd batch size."""
    Path("questions.yaml").write_text(
        f"extends: sample/questions\nmodel: {{name: {encoder}, dropout: 0}}\n"
        "data: {max_length: 24, doc_stride: 8, max_train_examples: 60, max_eval_examples: 21}\n"
        "training: {max_steps: 20, global_batch_size: 7, learning_rate: 1e-3, seed: 1}\n"
        "evaluation: {every_steps: 10}\nhardware: {device: cpu, log_every_steps: 5}\n",
        "utf-8",
    )
    return "questions.yaml"


FP32 = "hardware.precision=fp32"
SHARDED = ("hardware.shard=true",)
STAGES = ("training.strategy=gradual", "training.unfreeze_every_steps=5")
FEATURES = ("training.strategy=features",)
SKEWED = (
    "training.balance=labels",
    "training.loss=focal",
    "data.max_train_examples=25",
    "task.metrics=[f1, roc_auc, log_loss]",
    "evaluation.best_by=log_loss",
)
CHECKPOINTING = "hardware.gradient_checkpointing=true"


@pytest.mark.parametrize(
    ("launcher", "overrides"),
    [
        *(("", overrides) for overrides in ((), STAGES, SHARDED, FEATURES, SKEWED)),
        *(("", (*overrides, CHECKPOINTING)) for overrides in (STAGES, SHARDED)),
        *((launcher, ()) for launcher in ("torchrun", "accelerate")),
    ],
)
def test_two_processes_fine_tune_as_one(small: str, launcher: str, overrides: tuple[str, ...]) -> None:
    for processes, run in ((1, "one"), (2, "two")):
        process = call(processes, "finetune", small, *overrides, "--run", run, "--json", launcher=launcher)
        assert process.returncode == 0, process.stderr
        assert len(process.stdout.splitlines()) == 1, process.stdout
        assert process.stderr.count("20/20  validation") == 1
        assert len(torch.load(f"{run}/checkpoints/step-00000020/random.pt", weights_only=True)) == processes
    assert_same_training("one", "two")


def test_sharded_model_trains_in_bf16(small: str) -> None:
    for processes, run, more in ((1, "one", ()), (2, "two", (*SHARDED, "hardware.precision=bf16"))):
        process = call(processes, "finetune", small, *more, "--run", run)
        assert process.returncode == 0, process.stderr
    one, two = (json.loads(Path(run, "results.json").read_text())["metrics"]["validation"] for run in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=0.05)
    saved = load_file("two/model/model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_two_processes_distill_as_one(small: str) -> None:
    assert call(1, "finetune", small, "--run", "teacher").returncode == 0
    overrides = (*STAGES, "training.teacher=teacher", "training.teacher_hidden_weight=2")
    for processes, run in ((1, "one"), (2, "two")):
        process = call(processes, "finetune", small, *overrides, "--run", run)
        assert process.returncode == 0, process.stderr
    assert_same_training("one", "two")


def test_two_processes_answer_questions_as_one(questions: str) -> None:
    for processes, run in ((1, "one"), (2, "two")):
        process = call(processes, "finetune", questions, "--run", run)
        assert process.returncode == 0, process.stderr
    # A softmax over the tokens is invariant to a constant added to the logits of all tokens.
    assert_same_training("one", "two", without_gradient=("layer.1.output.LayerNorm.bias", "qa_outputs.bias"))


@pytest.mark.parametrize("overrides", [(), SHARDED])
def test_two_processes_pretrain_as_one(overrides: tuple[str, ...]) -> None:
    Path("corpus.txt").write_text("\n\n".join(sample_documents(300)))
    Path("pre.yaml").write_text(
        "corpus: {sources: [{files: corpus.txt}], held_out_fraction: 0.1}\ntokenizer: {vocab_size: 500}\n"
        "model: {size: null, dropout: 0, "
        "config_overrides: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}}\n"
        "phases: [{max_length: 32}]\n"
        "training: {max_steps: 10, global_batch_size: 9, learning_rate: 1e-3}\n"
        "evaluation: {every_steps: 5}\nhardware: {device: cpu, log_every_steps: 5}\n"
    )
    for processes, run in ((1, "one"), (2, "two")):
        process = call(processes, "pretrain", "pre.yaml", *overrides, "--run", run)
        assert process.returncode == 0, process.stderr
    assert_same_training("one", "two")


@pytest.mark.parametrize("task", ["sample/entities", "sample/questions"])
def test_each_row_is_scored_once_with_any_number_of_processes(encoder: Path, task: str) -> None:
    overrides = [f"model.name={encoder}", "model.dropout=0", "training.max_steps=2", "data.max_eval_examples=33"]
    for processes, run in ((1, "one"), (2, "two")):
        process = call(processes, "finetune", task, *overrides, "data.max_train_examples=40", "--run", run)
        assert process.returncode == 0, process.stderr
    scores = [json.loads(Path(run, "results.json").read_text())["metrics"]["validation"] for run in ("one", "two")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_two_processes_evaluate_and_predict_each_row_once(small: str) -> None:
    assert call(1, "finetune", small, "--run", "run").returncode == 0
    Path("rows.jsonl").write_text("".join(json.dumps({"text": f"the {n}th fine film"}) + "\n" for n in range(2100)))
    for processes in (1, 2):
        result = call(processes, "eval", "run", "--json")
        assert result.returncode == 0, result.stderr
        Path(f"{processes}.json").write_text(result.stdout)
        result = call(processes, "predict", "run", "--input", "rows.jsonl", "--output", f"{processes}.jsonl")
        assert result.returncode == 0, result.stderr
    one, two = (json.loads(Path(f"{processes}.json").read_text()) for processes in (1, 2))
    assert two["num_examples"] == one["num_examples"]
    for name, value in one["metrics"]["validation"].items():
        assert two["metrics"]["validation"][name] == pytest.approx(value, rel=1e-5)
    each = [[json.loads(line) for line in Path(f"{n}.jsonl").read_text().splitlines()] for n in (1, 2)]
    assert len(each[0]) == len(each[1]) == 2100
    for first, second in zip(*each, strict=True):
        assert second["text"] == first["text"]
        assert second["probabilities"] == pytest.approx(first["probabilities"], abs=1e-5)


def test_closed_pipe_ends_all_processes_quietly(small: str) -> None:
    """As in `bertcli predict … | head -1`: none of them gets as far as the row that has no text."""
    assert call(1, "finetune", small, "--run", "run").returncode == 0
    Path("rows.jsonl").write_text('{"text": "a fine film"}\n' * 20_000 + "{}\n")
    program = command(2, "predict", "run", "--input", "rows.jsonl", "--quiet")
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["text"] == "a fine film"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_failure_of_one_process_stops_all_with_its_message(small: str) -> None:
    Path("sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from bertcli.training import trainer\n"
        "    class FailingMeter(trainer.StepMeter):\n"
        "        def summary(self, *_): raise RuntimeError('rank 1 failed')\n"
        "    trainer.StepMeter = FailingMeter\n"
    )
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{Path.cwd()}:{os.environ.get('PYTHONPATH', '')}",
    }
    program = command(2, "finetune", small, "--run", "run", "--json", "--quiet")
    process = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert process.returncode == 1
    message = "process 1: unexpected RuntimeError: rank 1 failed (use --debug for the traceback)"
    assert process.stderr == f"error: {message}\n"
    assert json.loads(process.stdout) == {"error": message, "exit_code": 1}
    assert not Path("run/results.json").exists()


def test_grid_point_that_fails_only_in_the_first_process_stops_both(small: str) -> None:
    occupied = Path("grid/learning_rate=0.001/thesis.tex")
    occupied.parent.mkdir(parents=True)
    occupied.write_text("years of work")
    process = call(2, "finetune", small, "training.learning_rate=[1e-3, 2e-3]", "--run", "grid")
    assert process.returncode == 2
    assert process.stderr.count("grid/learning_rate=0.001 is not empty and is not a run") == 1
    assert [path.name for path in Path("grid").rglob("*")] == ["learning_rate=0.001", "thesis.tex"]


def test_signals_stop_all_processes_and_the_resumed_run_equals_an_uninterrupted_one(small: str) -> None:
    arguments = ["finetune", small, "training.max_steps=60", "hardware.log_every_steps=5", "model.dropout=0.1", "--run"]
    Path("slow").mkdir()
    Path("slow/sitecustomize.py").write_text(
        "import os, time\n"
        "if 'RANK' in os.environ:\n"
        "    from bertcli.training import trainer\n"
        "    train_steps = trainer.train_steps\n"
        "    def slow_steps(*arguments, **options):\n"
        "        for record in train_steps(*arguments, **options):\n"
        "            time.sleep(0.1)\n"
        "            yield record\n"
        "    trainer.train_steps = slow_steps\n"
    )
    slow = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"slow:{os.environ.get('PYTHONPATH', '')}"}
    history = Path("interrupted/train.jsonl")
    for number, code in ((signal.SIGTERM, 143), (signal.SIGUSR1, 85)):
        num_records, deadline = len(read_records(history)), time.monotonic() + 150
        process = subprocess.Popen(
            command(2, *arguments, "interrupted"), stderr=subprocess.PIPE, text=True, env=os.environ | slow
        )
        while len(read_records(history)) == num_records and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=90)
        assert process.returncode == code, errors
        assert "re-run the same command to resume" in errors
        checkpoint = sorted(Path("interrupted/checkpoints").iterdir())[-1]
        assert len(torch.load(checkpoint / "random.pt", weights_only=True)) == 2
    for run in ("interrupted", "uninterrupted"):
        process = call(2, *arguments, run)
        assert process.returncode == 0, process.stderr
        assert ("resuming interrupted after step" in process.stderr) == (run == "interrupted")
    interrupted, uninterrupted = (
        load_file(f"{run}/model/model.safetensors") for run in ("interrupted", "uninterrupted")
    )
    assert all(torch.equal(interrupted[name], uninterrupted[name]) for name in uninterrupted)
    assert read_records(Path("interrupted/eval.jsonl")) == read_records(Path("uninterrupted/eval.jsonl"))


def test_two_processes_train_multitask_as_one(encoder: Path) -> None:
    Path("suite.yaml").write_text(
        f"suite: [sample/sentiment, sample/choices]\nmultitask: {{sampling: equal}}\n"
        f"model: {{name: {encoder}, dropout: 0}}\n"
        "data: {max_length: 64, max_train_examples: 40, max_eval_examples: 7}\n"
        "training: {max_steps: 10, global_batch_size: 7, learning_rate: 1e-3, epochs: 1, seed: 1}\n"
        "evaluation: {every_steps: 5}\nhardware: {device: cpu, log_every_steps: 5}\n",
        "utf-8",
    )
    for processes, run in ((1, "one"), (2, "two")):
        process = call(processes, "finetune", "suite.yaml", "--run", run)
        assert process.returncode == 0, process.stderr
    scores = [json.loads(Path(run, "results.json").read_text())["metrics"]["validation"] for run in ("one", "two")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


def test_run_sharded_over_two_nodes_resumes_in_one_process(small: str) -> None:
    process = call(1, "finetune", small, "--run", "one")
    assert process.returncode == 0, process.stderr
    Path("sitecustomize.py").write_text(
        "import os, signal\n"
        "if 'RANK' in os.environ:\n"
        "    from bertcli.training import trainer\n"
        "    train_steps = trainer.train_steps\n"
        "    def interrupted_steps(*arguments, **options):\n"
        "        for record in train_steps(*arguments, **options):\n"
        "            if record.step == 10:\n"
        "                os.kill(os.getpid(), signal.SIGTERM)\n"
        "            yield record\n"
        "    trainer.train_steps = interrupted_steps\n"
    )
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{Path.cwd()}:{os.environ.get('PYTHONPATH', '')}",
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    rendezvous = ["--master-addr", "127.0.0.1", "--master-port", "29613"]
    program = ["-m", "--", "bertcli", "finetune", small, *SHARDED, "hardware.precision=fp32", "--run", "two"]
    nodes = [
        subprocess.Popen(
            [*torchrun, *rendezvous, "--node-rank", str(rank), *program],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    errors = [node.communicate(timeout=120)[1] for node in nodes]
    assert "stopped and saved after step 10" in errors[0], errors
    AutoModelForSequenceClassification.from_pretrained("two/model")
    Path("sitecustomize.py").unlink()
    process = call(1, "finetune", small, "--run", "two")
    assert "resuming two after step 10" in process.stderr
    assert_same_training("one", "two")
