"""A step directory on disk: config.yaml, provenance.json, logs/, outputs, CLAIM, FAILED, DONE. The directory is the database."""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sftdiff.errors import SftdiffError, one_line
from sftdiff.identity import HASH_VERSION, canonical, digest, file_sha256

# Outputs that hold times or places, and so differ between runs that made the same thing: verified, not part of the content hash.
WITH_TIMES = ("inspect/", "curve.jsonl", "model/sftdiff.json")
# What lies in a step directory without being an output of the step.
NOT_OUTPUTS = {"config.yaml", "provenance.json", "logs", "CLAIM", "DONE", "FAILED", "progress.json", "checkpoints", "wandb"}


@dataclass(frozen=True)
class StepRecord:
    """A step as its directory states it. `inputs` maps a name to the identity (directory name) of another step."""

    directory: Path
    kind: str
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, str]  # external files, as path -> content hash
    runtime: dict[str, Any]  # settings that are not part of the identity (ZeRO stage, tracker ...)

    @property
    def id(self) -> str:
        return self.directory.name

    def input_directory(self, name: str) -> Path:
        return self.directory.parent / self.inputs[name]


def load_record(directory: Path, runtime: dict[str, Any] | None = None) -> StepRecord:
    """Read a step's config.yaml; `runtime` takes the place of what it says there."""
    path = directory / "config.yaml"
    try:
        data = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        settings = data["runtime"] if runtime is None else runtime
        return StepRecord(directory, data["kind"], data["config"], data["inputs"], data["files"], settings)
    except FileNotFoundError:
        raise SftdiffError(f"{directory} is not a step directory: it has no config.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise SftdiffError(f"{path} is damaged ({one_line(error)}): delete {directory} and run the same command again") from None


def write_record(record: StepRecord) -> None:
    """Write a step's config.yaml."""
    names = ("config", "inputs", "files", "runtime")
    content = {"kind": record.kind, "hash_version": HASH_VERSION} | {name: getattr(record, name) for name in names}
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    temporary = record.directory / f".config.{os.getpid()}"
    try:
        temporary.write_text(yaml.dump(content, Dumper=dumper, sort_keys=False, allow_unicode=True, width=120))
        os.replace(temporary, record.directory / "config.yaml")
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a JSON file of a step; a damaged one is an error that names it and the way on."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise SftdiffError(
            f"{path} is damaged: delete the directory {path.parent} and run the same command again"
        ) from None


def output_files(directory: Path) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 of every output file of a step, by relative path."""
    found = {}
    for top in sorted(directory.iterdir()):
        if top.name in NOT_OUTPUTS or top.name.startswith("."):
            continue
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file():
                found[str(path.relative_to(directory))] = (path.stat().st_size, file_sha256(path))
    return found


def write_done(record: StepRecord, read: dict[str, str], summary: dict[str, Any], started: float) -> None:
    """Mark a step as done: the hashes of its outputs and of the inputs that it read."""
    files = output_files(record.directory)
    done = {
        "content": digest(canonical({name: sha for name, (_, sha) in files.items() if not name.startswith(WITH_TIMES)}), 64),
        "outputs": {name: {"bytes": size, "sha256": sha} for name, (size, sha) in files.items()},
        "inputs": read,
        "absent": [i for i in record.inputs.values() if not (record.directory.parent / i / "DONE").exists()],
        "summary": summary,
        "seconds": round(time.time() - started, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(record.directory / "DONE", done)


def read_done(directory: Path) -> dict[str, Any] | None:
    """Return a step's DONE record, or None if the step is not done."""
    path = directory / "DONE"
    if not path.exists():
        return None
    done: dict[str, Any] = read_json(path)
    if not isinstance(done, dict) or not {"content", "outputs", "inputs", "absent", "summary"} <= set(done):
        raise SftdiffError(f"{path} is damaged: delete the directory {directory} and run the same command again")
    return done


def verify_outputs(directory: Path, done: dict[str, Any], names: Iterable[str]) -> None:
    """Check these outputs of a step against its DONE record; raise with the damaged file's name."""
    for name in sorted(names):
        path, expected = directory / name, done["outputs"][name]
        if not path.is_file() or path.stat().st_size != expected["bytes"] or file_sha256(path) != expected["sha256"]:
            raise SftdiffError(
                f"the cached step {directory.name} is corrupt: {path} is not what its DONE file records; "
                f"delete {directory} and run the same command again"
            )


def state(directory: Path) -> str:
    """Return a step's state: done, stale, failed or open.

    A done step is *stale* when an input was made again with another content than the step read, or when one that was missing (a
    report is made in any case) is there now.
    """
    done = read_done(directory)
    if done is None:
        return "failed" if (directory / "FAILED").exists() else "open"
    if any((directory.parent / i / "DONE").exists() for i in done["absent"]):
        return "stale"
    for input_id, content in done["inputs"].items():
        now = read_done(directory.parent / input_id)
        if now is not None and now["content"] != content:
            return "stale"
    return "done"
