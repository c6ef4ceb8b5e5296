"""A mirror is filled with what recipes need, whole or not at all; a hub in memory stands in for the real one."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetInfo, ModelInfo
from typer.testing import CliRunner, Result

from bertcli.cli.main import app
from bertcli.commands.fetch import fetch
from bertcli.console import Console
from bertcli.data.sources import load_split
from bertcli.errors import BertcliError, HubError, ModelError, UsageError
from bertcli.mirror import needs_of
from bertcli.recipe.catalogue import load_any
from bertcli.recipe.load import load_recipe

QUIET = Console(quiet=True)
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
    """Repositories by (kind, name, revision), and how many files were fetched; `break_after` some it breaks off."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str, str | None], dict[str, bytes]] = {}
        self.fetched: list[str] = []
        self.break_after = 1000
        self.damage = ""

    def info(self, kind: str, name: str, revision: str | None) -> dict[str, Any]:
        from huggingface_hub.repocard import metadata_load

        files = self.repositories[kind, name, revision]
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
        found = [files for (kind, one, _), files in self.repositories.items() if (kind, one) == (repo_type, name)]
        for path, content in {path: content for files in found for path, content in files.items()}.items():
            if any(fnmatch.fnmatch(path, pattern) for pattern in allow_patterns):
                if len(self.fetched) == self.break_after:
                    raise ConnectionError("the line is dead")
                self.fetched.append(path)
                (local_dir / path).parent.mkdir(parents=True, exist_ok=True)
                (local_dir / path).write_bytes(content[:-1] + b"?" if path == self.damage else content)
                (local_dir / ".cache" / "huggingface").mkdir(parents=True, exist_ok=True)
                (local_dir / ".cache" / "huggingface" / "note").write_text("the library's")
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


def fetched(*words: str, **options: Any) -> dict[str, Any]:
    return fetch({"mine.yaml": load_recipe("mine.yaml", words)}, Path("mirror"), console=QUIET, **options)


def files_under(folder: str) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in sorted(Path(folder).rglob("*")) if path.is_file())


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["fetch", *words])


def test_a_mirror_gets_what_is_needed_and_the_run_can_do_with_it(hub: Hub) -> None:
    told = call("mine.yaml", "--mirror", "mirror")
    assert told.exit_code == 0, told.stderr
    assert "next      BERTCLI_MIRROR=mirror bertcli finetune mine.yaml" in told.stderr
    reviews = ["reviews/train-0.csv", "reviews/train-1.csv", "reviews/validation.csv"]
    texts = ["README.md", "first/train-0.csv", *reviews, "small/train.csv"]
    assert list(files_under("mirror/datasets")) == [f"org/texts/{name}" for name in texts]
    assert list(files_under("mirror/models")) == [f"org/encoder/{name}" for name in MODEL]
    task = load_recipe("mine.yaml").task
    assert not isinstance(task, str)
    assert len(load_split(task, "train", Path("mirror"))) == 4


def test_a_second_call_fetches_nothing_and_a_further_part_joins_the_first(hub: Hub) -> None:
    fetched("task.config=first")
    before = len(hub.fetched)
    assert all(folder["fetched"] == [] for folder in fetched("task.config=first")["folders"])
    assert len(hub.fetched) == before
    texts = fetched()["folders"][0]
    assert texts["fetched"] == ["reviews/train-0.csv", "reviews/train-1.csv", "reviews/validation.csv"]
    assert Path("mirror/datasets/org/texts/first/train-0.csv").read_bytes() == ROWS


def test_a_dry_run_tells_sizes_and_fetches_nothing(hub: Hub) -> None:
    told = call("mine.yaml", "--mirror", "mirror", "--dry-run", "--json")
    assert "datasets/org/texts" in told.stderr
    assert json.loads(told.stdout)["dry_run"]
    assert hub.fetched == []
    assert not Path("mirror").exists()


def test_what_was_broken_off_goes_on_and_never_looks_whole(hub: Hub) -> None:
    hub.break_after = 3
    with pytest.raises(HubError, match="the line is dead"):
        fetched()
    assert not Path("mirror/datasets/org/texts").exists()
    hub.break_after = 1000
    fetched()
    assert len(hub.fetched) == len(set(hub.fetched)) == 10
    assert list(Path("mirror").rglob(".*")) == []


def test_what_comes_damaged_is_refused_and_fetched_again(hub: Hub) -> None:
    hub.damage = "model.safetensors"
    with pytest.raises(HubError, match=r"models/org/encoder: not as the hub lists it: model\.safetensors"):
        fetched()
    assert not Path("mirror/models/org/encoder").exists()
    hub.damage = ""
    fetched()
    assert Path("mirror/models/org/encoder/model.safetensors").read_bytes() == b"model.safetensors"


def test_a_file_of_ones_own_in_the_mirror_is_left_as_it_is(hub: Hub) -> None:
    fetched()
    own = Path("mirror/datasets/org/texts/README.md")
    own.write_text("mine")
    with pytest.raises(UsageError, match=r"left as it is: mirror/datasets/org/texts/README\.md"):
        fetched()
    assert own.read_text() == "mine"


def test_everything_the_hub_lacks_is_told_at_once(hub: Hub) -> None:
    del hub.repositories["model", "org/encoder", None]["model.safetensors"]
    with pytest.raises(ModelError, match="no weights as safetensors"):
        fetched()
    with pytest.raises(BertcliError, match=r"expected 'reviws'. Did you mean reviews\?\n.*no weights") as caught:
        fetched("task.config=reviws")
    assert caught.value.exit_code == 1


def test_a_disk_without_room_is_told_before_anything_is_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="too little room"):
        fetched()
    assert hub.fetched == []


def test_a_data_set_that_is_a_program_comes_as_its_parquet_files(hub: Hub) -> None:
    import io

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
    fetched()
    assert list(files_under("mirror/datasets/org/texts")) == ["README.md", *converted]
    task = load_recipe("mine.yaml").task
    assert not isinstance(task, str)
    assert load_split(task, "validation", Path("mirror"))["text"][:] == ["a", "b"]
    assert fetched()["folders"][0]["fetched"] == []


def test_recipes_of_every_kind_say_what_they_need() -> None:
    mnli = [(need.name, need.part) for need in needs_of(load_any("glue/mnli"))]
    assert mnli == [("nyu-mll/glue", "mnli"), ("nyu-mll/glue", "ax"), ("google-bert/bert-base-uncased", "weights")]
    suite = {need.name for need in needs_of(load_any("glue"))}
    assert suite == {"nyu-mll/glue", "google-bert/bert-base-uncased"}
    base = [(need.name, need.part) for need in needs_of(load_any("pretrain/bert-base"))]
    assert base == [("wikimedia/wikipedia", "20231101.en"), ("google-bert/bert-base-uncased", None)]
    assert list(needs_of(load_any("sample/sentiment"))) == []


def test_names_that_leave_the_mirror_are_refused(hub: Hub) -> None:
    with pytest.raises(UsageError, match="expected a name on the hub"):
        fetched("model.name=../../secret")
    hub.repositories["model", "org/encoder", None] = {"../../secret": b""}
    with pytest.raises(HubError, match="would not stay in its folder"):
        fetched()


def test_an_unreachable_hub_is_said_with_the_cure() -> None:
    told = call("glue/rte", "--mirror", "mirror")
    assert told.exit_code == 1
    assert "did not answer as it should for dataset nyu-mll/glue" in told.stderr
    assert "Traceback" not in told.stderr
    assert not Path("mirror").exists()
    assert call("glue/rte").exit_code == 2
