"""`python -m sftdiff.evaluate calibrate`: compare a judge with hand labels.

The command is in launch.calibrate; this module only hands the command line to Hydra.
"""

from launch.cli import run_calibrate, run_hydra, take_subcommand

if __name__ == "__main__":
    take_subcommand("calibrate")
    run_hydra(run_calibrate)
