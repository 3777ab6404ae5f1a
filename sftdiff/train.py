"""`python -m sftdiff.train -m teacher=gemini,olmo filter=none,keyword`: plan a sweep, train, evaluate and compare.

The train step itself is in sftdiff.sft; this module only hands the command line to Hydra.
"""

from launch.cli import run_cell, run_hydra, subcommand

if __name__ == "__main__":
    subcommand({})
    run_hydra(run_cell)
