"""Memory settings of the process."""

from __future__ import annotations

import gc

from bertcli.malloc import without_garbage_collection


def test_garbage_is_collected_in_programs_that_have_imported_torch() -> None:
    import torch  # noqa: F401

    num_frozen = gc.get_freeze_count()
    with without_garbage_collection():
        assert gc.isenabled()
    assert gc.get_freeze_count() == num_frozen
