"""Starting a run with several processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

from accelerate import PartialState

from bertcli.recipe.load import dump_recipe, load_recipe
from bertcli.runs.claim import claim_run
from bertcli.training.startup import open_run

from ..conftest import QUIET


def test_folder_is_opened_only_after_all_processes_have_claimed_it(tmp_path: Path) -> None:
    claim = claim_run(tmp_path / "run", dump_recipe(load_recipe("sample/sentiment")))
    existed_at_barriers: list[bool] = []
    processes = SimpleNamespace(
        is_main_process=True, wait_for_everyone=lambda: existed_at_barriers.append(claim.folder.path.exists())
    )
    open_run(cast(PartialState, processes), claim, QUIET)
    assert existed_at_barriers == [False, True]
