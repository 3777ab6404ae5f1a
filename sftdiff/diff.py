"""`python -m sftdiff.diff trait_eval=blackmail original.teacher=gemini alternative.teacher=olmo`: from a trait to its cause.

Plans the arms of post-training diffing as one sweep, in rounds, and says which hypotheses survive. The subcommand `search` looks
for the smallest prompt subset behind the trait, `organisms` tests verdicts on planted causes, `keep` copies a diff's results into
a folder, and `report` makes its page of that. This module only hands the command line to Hydra; the rounds are in launch.diff and
launch.search, what they say in sftdiff.diffing and sftdiff.search.
"""

import sys

from launch.cli import run_diff, run_hydra, run_organisms, run_search, subcommand, take_subcommand, with_default
from sftdiff.kept import run_keep, run_report

if __name__ == "__main__":
    task = run_diff
    if sys.argv[1:2] == ["search"]:
        take_subcommand("search")
        task = run_search
    else:
        subcommand({"organisms": run_organisms, "keep": run_keep, "report": run_report})
    with_default("experiment=diff")
    run_hydra(task)
