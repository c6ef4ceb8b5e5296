"""Report an exception as one message on stderr and an exit code."""

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


def handle_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command so that its exceptions become one message on stderr and an exit code."""

    @functools.wraps(command)
    def wrapper(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, typer.Exit):
                raise
            from bertcli.console import escape_control

            message, exit_code = _message_and_exit_code(error)
            text = f"{traceback.format_exc()}{message}" if options.get("debug") else message
            prefix = f"process {rank}: " if (rank := os.environ.get("RANK", "0")) != "0" else ""
            print(textwrap.indent(escape_control(text), prefix), file=sys.stderr)
            raise typer.Exit(exit_code) from None

    return wrapper


def _message_and_exit_code(error: BaseException) -> tuple[str, int]:
    if isinstance(error, BertcliError):
        return f"error: {error}", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    lines = str(error).strip().splitlines()
    first_line = lines[0] if lines else ""
    return f"error: unexpected {type(error).__name__}: {first_line} (use --debug for the traceback)", 1
