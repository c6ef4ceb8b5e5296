"""What a verb raises, as one message and an exit code."""

from __future__ import annotations

import functools
import os
import sys
import textwrap
import traceback
from collections.abc import Callable
from typing import Any

import typer

from bertcli.errors import BertcliError


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into one message on stderr and an exit code."""

    @functools.wraps(command)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, typer.Exit):
                raise
            from bertcli.console import harmless

            message, code = _explain(error)
            told = f"{traceback.format_exc()}{message}" if options.get("debug") else message
            who = f"process {rank}: " if (rank := os.environ.get("RANK", "0")) != "0" else ""
            print(textwrap.indent(harmless(told), who), file=sys.stderr)
            raise typer.Exit(code) from None

    return guarded


def _explain(error: BaseException) -> tuple[str, int]:
    if isinstance(error, BertcliError):
        return f"error: {error}", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "stopped", 130
    words = str(error).strip().splitlines()
    return f"error: unexpected {type(error).__name__}: {words[0] if words else ''} (--debug shows where)", 1
