"""`python -m sftdiff.evaluate model=path model.path=FOLDER trait_eval=all`: evaluate models that are there, and compare them.

They are checkpoints, LoRA adapters, train steps, hub or hosted models; sampling and judging are the same steps as a sweep's.
`python -m sftdiff.evaluate calibrate` compares a judge with known verdicts. This module only hands the command line to Hydra.
"""

import sys

from launch.cli import run_calibrate, run_evaluation, run_hydra, subcommand, take_subcommand

if __name__ == "__main__":
    if sys.argv[1:2] == ["calibrate"]:
        take_subcommand("calibrate")
        run_hydra(run_calibrate)
    else:
        subcommand({})
        run_hydra(run_evaluation)
