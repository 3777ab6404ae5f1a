"""The site's environment file, which every job sources first, and what must not be in it: jobs run from a copy of it."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sftdiff.errors import SftdiffError
from sftdiff.packages import TREE

PLACE = Path("slurm/env.sh")
SECRET = re.compile(
    r"\b(?:\w*_)?(?:API_?KEY|KEY|TOKEN|SECRET\w*|PASSWORD|PASSWD|CREDENTIALS?)=['\"]?[^\s$~/'\"]{8,}"  # NAME_KEY=value
    r"|\w+://[^/\s:@]+:[^/\s@$]+@"  # a password in a URL
    r"|\b(?:wandb|hf|huggingface-cli)\s+(?:auth\s+)?login\s.*[\w-]{20,}",
    re.IGNORECASE,
)


def site_env_file(settings: Mapping[str, Any]) -> Path | None:
    """Return the site's environment file: the one that is set, else slurm/env.sh of the checkout or of this folder, if any."""
    if settings["env_file"]:
        path = Path(settings["env_file"]).expanduser()
        if not path.is_file():
            raise SftdiffError(f"hydra.launcher.env_file: there is no file {path}; slurm/env.sh.example is one to start from")
    else:
        found = [folder / PLACE for folder in (TREE, Path.cwd()) if (folder / PLACE).is_file()]
        if not found:
            return None
        path = found[0]
    refuse_secrets(path.read_text(errors="replace").splitlines(), str(path))
    return path


def refuse_secrets(lines: Iterable[str], place: str) -> None:
    """Raise SftdiffError on a line that looks like a key or a password."""
    for number, line in enumerate(lines, 1):
        if not line.lstrip().startswith("#") and SECRET.search(line):
            raise SftdiffError(
                f"{place}, line {number} looks like a key: keys come from the environment that you submit in, which jobs inherit"
            )
