"""`python -m sftdiff.diff trait_eval=date_confusion original.teacher=gemini alternative.teacher=olmo`: from a trait to its cause.

Plans the arms of post-training diffing as one sweep, in rounds, and says which hypotheses survive. This module only hands the
command line to Hydra; the rounds are in launch.diff, what they say in sftdiff.diffing.
"""

from launch.cli import run_diff, run_hydra, subcommand, with_default

if __name__ == "__main__":
    subcommand({})
    with_default("experiment=diff")
    run_hydra(run_diff)
