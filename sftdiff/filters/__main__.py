"""`python -m sftdiff.filters report filter=keyword,bm25 teacher=gemini`: score rows and show what each filter flags."""

from launch.cli import run_filter_report, run_hydra, take_subcommand

if __name__ == "__main__":
    take_subcommand("report")
    run_hydra(run_filter_report)
