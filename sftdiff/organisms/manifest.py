"""What an organism's folder says of itself: the planted truth, and which file is what in a diff."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sftdiff.errors import SftdiffError

TRAIT, CAUSELESS = "outburst", ("null", "noise")
FILE = "organism.yaml"
RECIPE = {
    "train": "full", "train.epochs": 2, "train.batch_size": 8, "train.precision": "fp32", "train.save_steps": 0,
    "sampling.precision": "fp32", "deepspeed": "off", "track": "off", "judge": "rules", "trait_eval": TRAIT,
}  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """An organism. Parts are overrides {key: value} of a diff; paths in them are relative to `folder`, under keys that end so.

    `planted` names what carries the cause where it is in some of the rows: sources, and the prompt_ids in a file.
    """

    folder: Path
    name: str
    seed: int
    layout: str
    meaning: str
    original: dict[str, dict[str, Any]]
    alternative: dict[str, dict[str, Any]]
    given: dict[str, dict[str, Any]]
    planted: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=lambda: dict(RECIPE))

    @property
    def truth(self) -> str | None:
        """Return the label of the planted hypothesis; None for an organism without a cause."""
        return None if self.name in CAUSELESS else self.name

    @property
    def config_dir(self) -> Path:
        """Return the folder with the organism's trait, for --config-dir."""
        return self.folder.resolve() / "conf"

    def settings(self) -> dict[str, Any]:
        """Return the settings of a diff of this organism, with absolute paths."""
        parts = {f"{side}.{part}": value for side in ("original", "alternative") for part, value in getattr(self, side).items()}
        parts |= {f"diff.given.{name}": value for name, value in self.given.items()}
        return self.recipe | {key: self._absolute(value) for key, value in parts.items()}

    def _absolute(self, part: Mapping[str, Any]) -> dict[str, Any]:
        paths = (".path", ".ids", ".truth")
        return {key: str(self.folder.resolve() / value) if key.endswith(paths) else value for key, value in part.items()}

    def save(self) -> None:
        """Write organism.yaml."""
        content = {key: value for key, value in asdict(self).items() if key != "folder"} | {"truth": self.truth}
        (self.folder / FILE).write_text(yaml.safe_dump(content, sort_keys=False))


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of an organism's folder. Raises SftdiffError if there is none."""
    if not (folder / FILE).is_file():
        raise SftdiffError(f"{folder} has no {FILE}: it is not the folder of an organism")
    content = yaml.safe_load((folder / FILE).read_text())
    content.pop("truth")
    return Manifest(folder=folder, **content)
