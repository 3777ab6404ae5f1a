"""`python -m sftdiff.rollouts teacher=gemini prompts=file prompts.path=prompts.jsonl`: generate a teacher's rollouts.

The generation itself is in sftdiff.generation; this module only hands the command line to Hydra.
"""

from launch.cli import run_hydra, run_rollouts, subcommand

if __name__ == "__main__":
    subcommand({})
    run_hydra(run_rollouts)
