"""Tags of entities: a letter for where in one a word stands, a dash, the kind of entity."""

from __future__ import annotations

from collections.abc import Iterable

LETTERS = ("B", "I", "E", "S", "L", "U")
OF_IOBES = {"L": "E", "U": "S"}


def parts_of(tag: str) -> tuple[str, str]:
    """`B-PER` is `B` and `PER`; what is outside of entities, or no such tag, is nothing twice."""
    letter, dash, kind = tag.partition("-")
    return (letter, kind) if dash and letter in LETTERS else ("", "")


def in_iobes(tags: Iterable[str]) -> list[str]:
    """Tags with the letters of BILOU as IOBES writes them, which are those that seqeval reads."""
    return [OF_IOBES[tag[0]] + tag[1:] if tag[:2] in ("L-", "U-") else tag for tag in tags]
