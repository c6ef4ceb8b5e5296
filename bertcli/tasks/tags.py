"""Entity tags such as `B-PER`: a position prefix, a dash, the entity type."""

from __future__ import annotations

from collections.abc import Iterable

PREFIXES = ("B", "I", "E", "S", "L", "U")
BILOU_TO_IOBES = {"L": "E", "U": "S"}


def split_tag(tag: str) -> tuple[str, str]:
    """Split `B-PER` into `B` and `PER`; two empty strings for `O` and anything that is not an entity tag."""
    prefix, dash, entity_type = tag.partition("-")
    return (prefix, entity_type) if dash and prefix in PREFIXES else ("", "")


def to_iobes(tags: Iterable[str]) -> list[str]:
    """Replace BILOU prefixes with the IOBES ones that seqeval reads; other tags are unchanged."""
    return [BILOU_TO_IOBES[tag[0]] + tag[1:] if tag[:2] in ("L-", "U-") else tag for tag in tags]
