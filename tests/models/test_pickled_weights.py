"""Conversion of pickled weights: equal to what transformers loads itself, once per content, never with code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bertcli.errors import ModelError
from bertcli.models import pickled_weights
from bertcli.models.from_pretrained import ModelSource
from bertcli.models.pickled_weights import content_key, convert_weights, pickled_files

CLASSIFIER = "AutoModelForSequenceClassification"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Convert in this process, which takes milliseconds instead of seconds; return the folders that are converted."""
    converted: list[Path] = []

    def convert(source: Path, target: Path) -> None:
        converted.append(source)
        pickled_weights._convert(source, target)

    monkeypatch.setattr(pickled_weights, "convert_weights", convert)
    return converted


def pickled(folder: str, encoder: Path, model_class: str = "BertForMaskedLM", **options: Any) -> Path:
    """Save a model with its weights in `pytorch_model.bin`."""
    config = transformers.AutoConfig.from_pretrained(encoder)
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config)
    model.config.architectures = [model_class]
    model.config.save_pretrained(folder)
    shutil.copy(encoder / "tokenizer.json", folder)
    torch.save(model.state_dict(), Path(folder, "pytorch_model.bin"), **options)
    return Path(folder)


def shard(folder: Path, num_shards: int) -> None:
    """Divide `pytorch_model.bin` into shards with an index."""
    state = torch.load(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").unlink()
    weight_map: dict[str, str] = {}
    for index in range(num_shards):
        name = f"pytorch_model-{index + 1:05d}-of-{num_shards:05d}.bin"
        names = [*state][index::num_shards]
        torch.save({key: state[key] for key in names}, folder / name)
        weight_map |= dict.fromkeys(names, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(
    ("saved_class", "auto_class"),
    [
        *[("BertForMaskedLM", name) for name in ("AutoModel", "AutoModelForMaskedLM", CLASSIFIER)],
        *[("BertForPreTraining", name) for name in ("AutoModelForPreTraining", "AutoModelForMaskedLM")],
        ("BertModel", CLASSIFIER),
    ],
)
def test_converted_weights_are_those_that_transformers_loads(
    encoder: Path, in_process: list[Path], saved_class: str, auto_class: str
) -> None:
    folder = pickled("model", encoder, saved_class)
    expected, report = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True)
    model = ModelSource("model").load_model(auto_class, on_missing=lambda weights: None)
    missing = {*report["missing_keys"]}
    for name, tensor in expected.state_dict().items():
        if name not in missing and "pooler" not in name:
            assert torch.equal(model.state_dict()[name], tensor), name
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "pytorch_model.bin", "tokenizer.json"]


def test_child_process_converts_once_and_says_so(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pickled("model", encoder)
    for _ in range(2):
        ModelSource("model").load_model("AutoModelForMaskedLM")
    converted = ModelSource("model").weights_path
    assert sorted(path.name for path in Path(converted).iterdir()) == ["manifest.json", "model.safetensors"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "converted" in line]
    assert lines == [f"warning: converted pytorch_model.bin of model to safetensors: {converted}"]
    monkeypatch.setattr(subprocess, "run", None)  # a conversion would fail
    shutil.copytree(folder, "copy", copy_function=shutil.copy2)
    assert ModelSource("copy").weights_path == converted


def test_changed_weights_are_converted_again(encoder: Path, in_process: list[Path]) -> None:
    folder = pickled("model", encoder)
    first = ModelSource("model").weights_path
    state = torch.load(folder / "pytorch_model.bin")
    state["bert.embeddings.word_embeddings.weight"][5] += 1
    status = (folder / "pytorch_model.bin").stat()
    torch.save(state, folder / "pytorch_model.bin")
    os.utime(folder / "pytorch_model.bin", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (folder / "pytorch_model.bin").stat().st_size == status.st_size
    model = ModelSource("model").load_model("AutoModelForMaskedLM")
    assert ModelSource("model").weights_path != first
    assert torch.equal(model.state_dict()["bert.embeddings.word_embeddings.weight"],
                       state["bert.embeddings.word_embeddings.weight"])  # fmt: skip
    assert len(in_process) == 2


def test_content_key_depends_on_every_part_of_a_large_file(tmp_path: Path) -> None:
    path, size = tmp_path / "file", 40 << 20
    path.write_bytes(bytes(size))
    os.utime(path, (1, 1))
    keys = {content_key([path])}
    for position in (0, size // 2, size - 1):
        with path.open("r+b") as file:
            file.seek(position)
            file.write(b"x")
        os.utime(path, (1, 1))
        keys.add(content_key([path]))
    os.utime(path, (2, 2))
    keys.add(content_key([path]))
    assert len(keys) == 5


@pytest.mark.parametrize("legacy", [False, True])
def test_shards_and_files_of_old_torch_versions_are_converted(
    encoder: Path, in_process: list[Path], legacy: bool
) -> None:
    folder = pickled("model", encoder, _use_new_zipfile_serialization=not legacy)
    expected = ModelSource("model").load_model("AutoModelForMaskedLM").state_dict()
    shard(folder, 3)
    model = ModelSource("model").load_model("AutoModelForMaskedLM")
    assert len(list(Path(ModelSource("model").weights_path).glob("model-*-of-00003.safetensors"))) == 3
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())


def test_tied_and_sliced_tensors_are_saved_under_each_name(in_process: list[Path]) -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    views = {"tied": weight, "transposed": weight.T, "row": weight[1], "parameter": torch.nn.Parameter(weight)}
    Path("model").mkdir()
    torch.save({"weight": weight, **views}, "model/pytorch_model.bin")
    pickled_weights.convert_weights(Path("model"), Path("model"))
    saved = load_file("model/model.safetensors")
    assert {*saved} == {"weight", *views}
    assert all(torch.equal(saved[name], view) for name, view in views.items())


def test_former_names_of_layer_norm_weights_are_read(encoder: Path, in_process: list[Path]) -> None:
    folder = pickled("model", encoder)
    state = torch.load(folder / "pytorch_model.bin")
    expected = {name: tensor + 1 for name, tensor in state.items() if "LayerNorm" in name}
    former = {name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): name for name in state}
    torch.save({old: expected.get(name, state[name]) for old, name in former.items()}, folder / "pytorch_model.bin")
    loaded = ModelSource("model").load_model("AutoModelForMaskedLM").state_dict()
    assert len(expected) > 5
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_safetensors_are_preferred(encoder: Path) -> None:
    folder = pickled("model", encoder)
    state = torch.load(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    names = {name: tensor.clone() for name, tensor in state.items()}
    save_file(names, folder / "model.safetensors", {"format": "pt"})
    ModelSource("model").load_model("AutoModelForMaskedLM")
    assert ModelSource("model").weights_path == "model"


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, 5000), r"model/pytorch_model\.bin"),
    "empty": (lambda path: path.write_bytes(b""), r"cannot read model/pytorch_model\.bin .*damaged"),
    "text": (lambda path: path.write_text("hello"), r"cannot read model/pytorch_model\.bin \(\w+: .*damaged"),
    "list": (lambda path: torch.save([torch.ones(1)], path), r"found a list in model/pytorch_model\.bin"),
    "nested": (lambda path: torch.save({"model": {}}, path), r"found dict for 'model' in model/pytorch_model\.bin"),
    "sparse": (lambda path: torch.save({"w": torch.eye(2).to_sparse()}, path), r"'w' in .* is a sparse or quantized"),
    "class": (lambda path: torch.save({"w": Path("x")}, path), r"it uses pathlib\.PosixPath, and could run any code"),
    "pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "pointer of Git LFS"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_files_that_are_not_plain_tensors_are_refused(encoder: Path, in_process: list[Path], kind: str) -> None:
    folder = pickled("model", encoder)
    break_file, message = BROKEN[kind]
    break_file(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=message):
        ModelSource("model").load_model("AutoModelForMaskedLM")
    assert not list(Path("cache").glob("weights/*"))


def test_killed_child_process_is_reported(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pickled("model", encoder)

    def killed(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, -signal.SIGKILL, b"", b"")

    monkeypatch.setattr(subprocess, "run", killed)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin in model .*\(killed, perhaps for lack of memory\)"):
        convert_weights(folder, Path("model"))


def test_index_names_only_files_of_its_folder_that_exist(encoder: Path) -> None:
    folder = pickled("model", encoder)
    shard(folder, 2)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ModelError, match=r"but not its pytorch_model-00002-of-00002\.bin; restore that file"):
        pickled_files(folder)
    for content in ('{"weight_map": {"a": "../../b.bin"}}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[", "3"):
        (folder / "pytorch_model.bin.index.json").write_text(content)
        with pytest.raises(ModelError, match=r"index\.json is corrupt: expected a weight_map"):
            ModelSource("model").load_model("AutoModel")


@pytest.mark.parametrize(("name", "framework"), [("tf_model.h5", "TensorFlow"), ("flax_model.msgpack", "Flax")])
def test_weights_of_other_frameworks_are_named(encoder: Path, name: str, framework: str) -> None:
    folder = pickled("model", encoder)
    (folder / "pytorch_model.bin").rename(folder / name)
    with pytest.raises(ModelError, match=rf"found only {name} \({framework}\), expected model\.safetensors or pytorch"):
        _ = ModelSource("model").config


def test_pickled_adapter_is_named(encoder: Path) -> None:
    folder = pickled("model", encoder)
    (folder / "pytorch_model.bin").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"found only adapter_model\.bin, a pickled LoRA adapter, expected adapter_m"):
        _ = ModelSource("model").config


def test_weights_without_any_of_the_encoder_are_refused(encoder: Path, in_process: list[Path]) -> None:
    folder = pickled("model", encoder)
    state = torch.load(folder / "pytorch_model.bin")
    for content, found in (({f"module.{name}": state[name] for name in state}, "'module.bert"), ({}, "none")):
        torch.save(content, folder / "pytorch_model.bin")
        for new_head in (True, False):
            with pytest.raises(ModelError, match=rf"no tensor of its encoder: found {found}.*expected names such as "):
                ModelSource("model").load_model(CLASSIFIER, new_head=new_head, on_missing=lambda weights: None)


def test_threads_convert_a_model_once(encoder: Path, in_process: list[Path]) -> None:
    pickled("model", encoder)
    with ThreadPoolExecutor(4) as pool:
        paths = {*pool.map(lambda _: ModelSource("model").weights_path, range(4))}
    assert len(paths) == 1
    assert len(in_process) == 1
    assert len([path for path in Path("cache/weights").iterdir() if path.is_dir()]) == 1


def test_weights_in_the_hub_cache_are_converted(
    encoder: Path, in_process: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot = tmp_path / "hub" / "models--org--encoder" / "snapshots" / ("1" * 40)
    snapshot.parent.mkdir(parents=True)
    pickled(str(snapshot), encoder)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("1" * 40)
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = ModelSource("org/encoder").load_model("AutoModelForMaskedLM")
    expected = torch.load(snapshot / "pytorch_model.bin")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())
    assert in_process == [snapshot]


def test_saved_model_does_not_name_the_cache(encoder: Path, in_process: list[Path]) -> None:
    pickled("model", encoder)
    model = ModelSource("model").load_model("AutoModelForMaskedLM")
    model.save_pretrained("saved")
    assert str(Path("cache").resolve()) not in Path("saved/config.json").read_text()
