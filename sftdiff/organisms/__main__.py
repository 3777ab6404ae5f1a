"""`python -m sftdiff.organisms NAME SEED FOLDER [LAYOUT]`: make one organism, if it is not there yet."""

import sys
from pathlib import Path

from transformers.utils import logging

from sftdiff.errors import SftdiffError
from sftdiff.organisms.make import make_organism
from sftdiff.organisms.manifest import FILE


def main(name: str, seed: str, folder: str, layout: str = "kinds") -> None:
    place = Path(folder)
    if not (place / FILE).is_file():
        place.mkdir(parents=True, exist_ok=True)
        make_organism(name, int(seed), place, layout=layout)


if __name__ == "__main__":
    logging.disable_progress_bar()  # a bar for each small file of weights says nothing
    try:
        main(*sys.argv[1:])
    except SftdiffError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:  # the caller says it
        sys.exit(130)
