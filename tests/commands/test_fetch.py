"""`bertcli fetch` fills a mirror with complete files only; a fake in-memory Hub replaces the real one."""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from huggingface_hub import DatasetInfo, ModelInfo
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from bertcli.cli.main import app
from bertcli.commands.fetch import fetch
from bertcli.data.sources import load_split
from bertcli.errors import BertcliError, HubError, ModelError, UsageError
from bertcli.mirror import requirements
from bertcli.models import pickled_weights
from bertcli.recipe.catalogue import load_any
from bertcli.recipe.load import load_recipe

from ..conftest import QUIET

ROWS = b"text,label\na fine film,good\na dull film,bad\n"
CARD = b"""---
configs:
- config_name: first
  data_files: [{split: train, path: first/train-*}]
- config_name: reviews
  data_files:
  - {split: train, path: reviews/train-*}
  - {split: validation, path: [reviews/validation.csv]}
- config_name: huge
  data_files: huge/*.csv
- config_name: small
  data_dir: small
---
"""
RECIPE = """
task: {dataset: org/texts, config: reviews, text_columns: [text], labels: [good, bad]}
model: {name: org/encoder}
"""
MODEL = ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt")


class Hub:
    """A fake Hub: repositories by (repo type, name, revision), and the files that were fetched.

    A download fails after `fail_after` files; the content of the file `corrupt_file` is corrupted.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str, str | None], dict[str, bytes]] = {}
        self.fetched: list[str] = []
        self.fail_after = 1000
        self.corrupt_file = ""

    def info(self, kind: str, name: str, revision: str | None) -> dict[str, Any]:
        from huggingface_hub.repocard import metadata_load

        latest = None if revision == "1" * 40 else revision
        files = self.repositories.get((kind, name, revision)) or self.repositories[kind, name, latest]
        Path("card.md").write_bytes(files.get("README.md", b"# no metadata\n"))
        siblings: list[dict[str, Any]] = []
        for path, content in files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            lfs = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 9}
            is_large = path.endswith((".safetensors", ".parquet"))
            siblings.append(
                {"rfilename": path, "size": len(content), "blobId": blob} | ({"lfs": lfs} if is_large else {})
            )
        return {"id": name, "sha": "1" * 40, "siblings": siblings, "cardData": metadata_load("card.md")}

    def snapshot(self, name: str, *, repo_type: str, revision: str, local_dir: Path, allow_patterns: list[str]) -> str:
        revisions = [files for key, files in self.repositories.items() if key[:2] == (repo_type, name)]
        for path, content in {path: content for files in revisions for path, content in files.items()}.items():
            if any(fnmatch.fnmatch(path, pattern) for pattern in allow_patterns):
                if len(self.fetched) == self.fail_after:
                    raise ConnectionError("connection lost")
                self.fetched.append(path)
                (local_dir / path).parent.mkdir(parents=True, exist_ok=True)
                (local_dir / path).write_bytes(content[:-1] + b"?" if path == self.corrupt_file else content)
                (local_dir / ".cache" / "huggingface").mkdir(parents=True, exist_ok=True)
                (local_dir / ".cache" / "huggingface" / "note").write_text("metadata")
        return str(local_dir)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    texts = {"README.md": CARD, ".gitattributes": b""}
    texts |= {
        f"{name}.csv": ROWS
        for name in ("first/train-0", "reviews/train-0", "reviews/train-1", "huge/train", "small/train")
    }
    hub.repositories["dataset", "org/texts", None] = texts | {"reviews/validation.csv": ROWS}
    encoder = {
        name: name.encode() for name in (*MODEL, "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "README.md")
    }
    hub.repositories["model", "org/encoder", None] = encoder
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.model_info",
        lambda _, name, revision, files_metadata: ModelInfo(**hub.info("model", name, revision)),
    )
    monkeypatch.setattr(
        "huggingface_hub.HfApi.dataset_info",
        lambda _, name, revision, files_metadata: DatasetInfo(**hub.info("dataset", name, revision)),
    )
    Path("mine.yaml").write_text(RECIPE)
    return hub


def fetch_mine(*overrides: str, **options: Any) -> dict[str, Any]:
    return fetch({"mine.yaml": load_recipe("mine.yaml", overrides)}, Path("mirror"), console=QUIET, **options)


def files_under(folder: str) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in sorted(Path(folder).rglob("*")) if path.is_file())


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["fetch", *arguments])


def test_fetch_downloads_the_required_files_and_rows_load_from_the_mirror(hub: Hub) -> None:
    result = call("mine.yaml", "--mirror", "mirror")
    assert result.exit_code == 0, result.stderr
    assert "next      BERTCLI_MIRROR=mirror bertcli finetune mine.yaml" in result.stderr
    reviews = ["reviews/train-0.csv", "reviews/train-1.csv", "reviews/validation.csv"]
    texts = ["README.md", "first/train-0.csv", *reviews, "small/train.csv"]
    assert list(files_under("mirror/datasets")) == [f"org/texts/{name}" for name in texts]
    assert list(files_under("mirror/models")) == [f"org/encoder/{name}" for name in MODEL]
    task = load_recipe("mine.yaml").task
    assert not isinstance(task, str)
    assert len(load_split(task, "train", Path("mirror"))) == 4


def test_fetch_again_downloads_nothing_and_adds_another_configuration(hub: Hub) -> None:
    fetch_mine("task.config=first")
    num_fetched = len(hub.fetched)
    assert all(folder["fetched"] == [] for folder in fetch_mine("task.config=first")["folders"])
    assert len(hub.fetched) == num_fetched
    texts = fetch_mine()["folders"][0]
    assert texts["fetched"] == ["reviews/train-0.csv", "reviews/train-1.csv", "reviews/validation.csv"]
    assert Path("mirror/datasets/org/texts/first/train-0.csv").read_bytes() == ROWS


def test_fetch_dry_run_lists_sizes_and_downloads_nothing(hub: Hub) -> None:
    result = call("mine.yaml", "--mirror", "mirror", "--dry-run", "--json")
    assert "datasets/org/texts" in result.stderr
    assert json.loads(result.stdout)["dry_run"]
    assert hub.fetched == []
    assert not Path("mirror").exists()


def test_fetch_resumes_and_a_partial_folder_never_appears_complete(hub: Hub) -> None:
    hub.fail_after = 3
    with pytest.raises(HubError, match="connection lost"):
        fetch_mine()
    assert not Path("mirror/datasets/org/texts").exists()
    hub.fail_after = 1000
    fetch_mine()
    assert len(hub.fetched) == len(set(hub.fetched)) == 10
    assert list(Path("mirror").rglob(".*")) == []


def test_two_fetches_into_one_mirror_wait_for_each_other(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first_downloads, second_waits = Event(), Event()

    def download(*arguments: Any, **options: Any) -> str:
        first_downloads.set()
        assert second_waits.wait(timeout=20)  # it has listed the same missing files
        return hub.snapshot(*arguments, **options)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(QUIET, "warn", lambda text: second_waits.set())
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch_mine)
        assert first_downloads.wait(timeout=20)
        second = pool.submit(fetch_mine)
        assert first.result(timeout=60)["folders"] == second.result(timeout=60)["folders"]
    assert len(hub.fetched) == len(set(hub.fetched))
    assert list(files_under("mirror/models")) == [f"org/encoder/{name}" for name in MODEL]
    assert not [path for path in Path("mirror").rglob(".*") if path.name != ".gitattributes"]


def test_fetch_rejects_a_corrupt_file_and_downloads_it_again(hub: Hub) -> None:
    hub.corrupt_file = "model.safetensors"
    with pytest.raises(HubError, match=r"models/org/encoder: size or checksum differs .*: model\.safetensors"):
        fetch_mine()
    assert not Path("mirror/models/org/encoder").exists()
    hub.corrupt_file = ""
    fetch_mine()
    assert Path("mirror/models/org/encoder/model.safetensors").read_bytes() == b"model.safetensors"


def test_fetch_keeps_a_different_local_file(hub: Hub) -> None:
    fetch_mine()
    local = Path("mirror/datasets/org/texts/first/train-0.csv")
    local.write_text("mine")
    with pytest.raises(UsageError, match=r"left unchanged: mirror/datasets/org/texts/first/train-0\.csv"):
        fetch_mine()
    assert local.read_text() == "mine"


def test_fetch_stays_at_the_revision_of_the_mirror_if_the_dataset_changes(hub: Hub) -> None:
    fetch_mine("task.config=first")
    assert json.loads(Path("mirror/revisions.json").read_text())["datasets/org/texts"] == "1" * 40
    old = hub.repositories["dataset", "org/texts", None]
    hub.repositories["dataset", "org/texts", "1" * 40] = old
    hub.repositories["dataset", "org/texts", None] = {"README.md": b"another card"}
    texts = fetch_mine()["folders"][0]
    assert texts["revision"] == "1" * 40
    assert "reviews/train-0.csv" in texts["fetched"]
    assert Path("mirror/datasets/org/texts/README.md").read_bytes() == CARD


def test_fetch_does_not_stop_at_a_changed_readme_if_no_file_is_missing(hub: Hub) -> None:
    fetch_mine()
    Path("mirror/revisions.json").unlink()  # as of a mirror that was filled by hand
    readme = Path("mirror/datasets/org/texts/README.md")
    readme.write_bytes(CARD + b"an older text\n")
    assert fetch_mine()["folders"][0]["fetched"] == []
    assert readme.read_bytes() == CARD + b"an older text\n"


def test_fetch_reports_all_problems_together(hub: Hub) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        del hub.repositories["model", "org/encoder", None][name]
    with pytest.raises(ModelError, match=r"in org/encoder on the Hub, which has only tf_model\.h5 \(TensorFlow\);"):
        fetch_mine()
    with pytest.raises(BertcliError, match=r"expected 'reviws'. Did you mean reviews\?\n.*only tf_model\.h5") as caught:
        fetch_mine("task.config=reviws")
    assert caught.value.exit_code == 1


def pickled(*names: str) -> dict[str, bytes]:
    """Return the content of a repository whose weights are pickled."""
    file = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, file)
    return dict.fromkeys(names, file.getvalue()) | {"config.json": b"{}", "tokenizer.json": b"{}", "tf_model.h5": b"x"}


def test_fetch_converts_pickled_weights_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertcli.commands.fetch.convert_weights", pickled_weights._convert)
    hub.repositories["model", "org/encoder", None] = pickled("pytorch_model.bin")
    dry = call("mine.yaml", "--mirror", "mirror", "--dry-run")
    assert re.search(r"total +\S+ \S+ to fetch and \S+ \S+ to convert, ", dry.stderr)
    result = call("mine.yaml", "--mirror", "mirror")
    assert result.exit_code == 0, result.stderr
    folder = Path("mirror/models/org/encoder")
    assert f"converted pytorch_model.bin to safetensors: {folder}" in result.stderr
    assert list(files_under("mirror/models")) == [
        f"org/encoder/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")
    ]
    assert torch.equal(load_file(folder / "model.safetensors")["weight"], torch.ones(2))
    assert fetch_mine()["bytes"] == 0
    assert hub.fetched.count("pytorch_model.bin") == 1


def test_fetch_converts_sharded_pickles(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertcli.commands.fetch.convert_weights", pickled_weights._convert)
    shards = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    index = json.dumps({"weight_map": {"weight": shards[0], "other": shards[1]}}).encode()
    hub.repositories["model", "org/encoder", None] = pickled(*shards) | {"pytorch_model.bin.index.json": index}
    fetch_mine()
    names = {path.name for path in Path("mirror/models/org/encoder").iterdir()}
    assert {name for name in names if "model" in name} == {
        "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    }  # fmt: skip
    assert fetch_mine()["bytes"] == 0


def test_fetch_keeps_nothing_of_weights_that_it_refuses(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertcli.commands.fetch.convert_weights", pickled_weights._convert)
    hub.repositories["model", "org/encoder", None] = pickled() | {"pytorch_model.bin": b"not weights"}
    with pytest.raises(ModelError, match=r"refused to load .*pytorch_model\.bin"):
        fetch_mine()
    assert not Path("mirror/models/org/encoder").exists()
    hub.repositories["model", "org/encoder", None] = pickled("pytorch_model.bin")
    fetch_mine()
    assert Path("mirror/models/org/encoder/model.safetensors").is_file()


def test_fetch_checks_free_disk_space_before_downloading(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="not enough free disk space"):
        fetch_mine()
    assert hub.fetched == []


def test_script_dataset_is_fetched_as_its_parquet_conversion(hub: Hub) -> None:
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": ["good", "bad"]}), file)
    converted = {f"reviews/{split}/0000.parquet": file.getvalue() for split in ("train", "validation")}
    hub.repositories["dataset", "org/texts", None] = {
        "texts.py": b"import os",
        "README.md": b"---\nlicense: mit\n---\n",
    }
    hub.repositories["dataset", "org/texts", "refs/convert/parquet"] = converted
    fetch_mine()
    assert list(files_under("mirror/datasets/org/texts")) == ["README.md", *converted]
    task = load_recipe("mine.yaml").task
    assert not isinstance(task, str)
    assert load_split(task, "validation", Path("mirror"))["text"][:] == ["a", "b"]
    assert fetch_mine()["folders"][0]["fetched"] == []


def test_requirements_of_each_kind_of_recipe() -> None:
    mnli = [(requirement.name, requirement.part) for requirement in requirements(load_any("glue/mnli"))]
    assert mnli == [("nyu-mll/glue", "mnli"), ("nyu-mll/glue", "ax"), ("google-bert/bert-base-uncased", "weights")]
    suite = {requirement.name for requirement in requirements(load_any("glue"))}
    assert suite == {"nyu-mll/glue", "google-bert/bert-base-uncased"}
    base = [(requirement.name, requirement.part) for requirement in requirements(load_any("pretrain/bert-base"))]
    assert base == [("wikimedia/wikipedia", "20231101.en"), ("google-bert/bert-base-uncased", None)]
    assert list(requirements(load_any("sample/sentiment"))) == []


def test_fetch_rejects_names_outside_the_mirror(hub: Hub) -> None:
    with pytest.raises(UsageError, match="invalid Hub repository ID"):
        fetch_mine("model.name=../../secret")
    hub.repositories["model", "org/encoder", None] = {"../../secret": b""}
    with pytest.raises(HubError, match="is outside its folder"):
        fetch_mine()


def test_fetch_reports_an_unreachable_hub() -> None:
    result = call("glue/rte", "--mirror", "mirror")
    assert result.exit_code == 1
    assert "request to the Hub failed for dataset nyu-mll/glue" in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("mirror").exists()
    assert call("glue/rte").exit_code == 2
