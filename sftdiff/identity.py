"""Identities: hashes that exist before anything ran, and content hashes of what was written."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Raise when the meaning of a step changes without its config changing: every identity changes with it.
HASH_VERSION = 1
DIGITS = 12


def canonical(value: Any) -> str:
    """Return the JSON text of `value` with sorted keys: equal configs give equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(text: str, digits: int = DIGITS) -> str:
    """Return the first `digits` hex digits of the SHA-256 of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def step_identity(kind: str, config: Mapping[str, Any], inputs: Mapping[str, str], files: Mapping[str, str]) -> str:
    """Return a step's identity: a hash of its kind, own config, input identities and external file hashes."""
    return digest(canonical([HASH_VERSION, kind, config, inputs, files]))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes (64 hex digits)."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def prompt_id(messages: Iterable[Mapping[str, str]]) -> str:
    """Return the content hash of a prompt (the conversation up to the reply), 16 hex digits."""
    return digest(canonical([[m["role"], m["content"]] for m in messages]), 16)


def unit_interval(*parts: Any) -> float:
    """Return a number in [0, 1) that depends on `parts` only: the seeded choices of rows use it."""
    return int(digest(canonical(list(parts)), 13), 16) / 16**13
