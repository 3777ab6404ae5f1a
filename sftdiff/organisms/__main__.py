"""`python -m sftdiff.organisms NAME SEED FOLDER [LAYOUT]`: make one organism, and print the arguments of its diff, one a line."""

import sys
from pathlib import Path

from sftdiff.errors import SftdiffError
from sftdiff.organisms.make import make_organism
from sftdiff.organisms.manifest import FILE, load_manifest


def main(name: str, seed: str, folder: str, layout: str = "kinds") -> None:
    place = Path(folder)
    if (place / FILE).is_file():
        manifest = load_manifest(place)
    else:
        place.mkdir(parents=True, exist_ok=True)
        manifest = make_organism(name, int(seed), place, layout=layout)
    print(f"--config-dir={manifest.config_dir}", *manifest.overrides(), sep="\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except SftdiffError as error:
        sys.exit(str(error))
