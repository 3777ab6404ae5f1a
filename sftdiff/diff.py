"""`python -m sftdiff.diff trait_eval=blackmail original.teacher=gemini alternative.teacher=olmo`: from a trait to its cause.

Plans the arms of post-training diffing as one sweep, in rounds, and says which hypotheses survive. The subcommand `search` looks
for the smallest prompt subset behind the trait, `tda` puts rankings of rows to the test, `organisms` tests verdicts on planted
causes, `keep` copies a diff's results into a folder, and `report` makes its page of that. This module only hands the command line
to Hydra; the rounds are in launch.diff, launch.search and launch.tda, what they say in sftdiff.diffing, sftdiff.search and
sftdiff.tda_report.
"""

import sys

from launch.cli import run_diff, run_hydra, run_organisms, run_search, run_tda, subcommand, take_subcommand, with_default
from sftdiff.kept import run_keep, run_report

if __name__ == "__main__":
    task, word = run_diff, sys.argv[1] if len(sys.argv) > 1 else ""
    if word in ("search", "tda"):
        take_subcommand(word)
        task = run_search if word == "search" else run_tda
    else:
        subcommand({"organisms": run_organisms, "keep": run_keep, "report": run_report}, also=("search", "tda"))
    with_default("experiment=diff")
    run_hydra(task)
