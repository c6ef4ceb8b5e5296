"""`bertcli bench` times PyTorch and ONNX Runtime on validation texts or made-up ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from bertcli.cli.main import app
from bertcli.commands import bench as bench_command
from bertcli.models import onnx_export

from .conftest import ExportedRun


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments, "--seconds", "0.01"])


@pytest.mark.usefixtures("_traced")
def test_bench_times_every_form_on_validation_texts(exported_run: ExportedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_command, "cpu_computes_bf16", lambda: True)
    num_threads, num_session_threads = [torch.get_num_threads()], []
    # Two threads would wait for each other on a busy machine.
    monkeypatch.setattr(torch, "set_num_threads", num_threads.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads[-1])

    def load_session(path: Path, num_threads: int) -> object:
        num_session_threads.append(num_threads)
        return onnx_export.load_session(path, 1)

    monkeypatch.setattr("bertcli.inference.onnx_model.load_session", load_session)
    result = call(str(exported_run.run), "--threads", "2", "--seconds", "0.02", "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["inputs"].startswith("validation texts of ")
    assert ", 2 threads on " in facts["machine"]
    assert (num_threads[-1], {*num_threads[1:-1]}) == (num_threads[0], {2})
    assert num_session_threads == [2, 2]
    forms = ("PyTorch fp32", "PyTorch bf16", "ONNX fp32", "ONNX int8")
    assert [(entry["form"], entry["batch_size"]) for entry in facts["results"]] == [
        (form, size) for form in forms for size in (1, 8, 32)
    ]
    for entry in facts["results"]:
        assert 0 < entry["median_ms"] <= entry["p95_ms"]
        assert entry["rows_per_second"] > 0


def test_bench_without_a_task_or_onnx_times_pytorch_on_made_up_texts(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(bench_command, "cpu_computes_bf16", lambda: False)
    lengths = set()
    measure = bench_command.measure_latency

    def record_lengths(module: torch.nn.Module, batches: list[dict[str, torch.Tensor]], seconds: float) -> object:
        lengths.update((len(batch["input_ids"]), batch["attention_mask"].sum(1).min().item()) for batch in batches)
        return measure(module, batches, seconds)

    monkeypatch.setattr(bench_command, "measure_latency", record_lengths)
    result = call(str(encoder), "--length", "20")
    assert result.exit_code == 0, result.stderr
    assert lengths == {(1, 20), (8, 20), (32, 20)}
    assert 'only PyTorch was timed: ONNX needs onnxruntime, which is not installed: pip install "bertcli[export]"' in (
        result.stderr
    )
    assert [line.split("|")[1].strip() for line in result.stdout.splitlines()[2:]] == ["PyTorch fp32"] * 3
    assert "supports at most 64 tokens" in call(str(encoder), "--length", "65").stderr
