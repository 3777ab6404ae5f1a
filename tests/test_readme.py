"""Every command of README.md and CONTRIBUTING.md is accepted as it stands; the examples for an own filter and trait run."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import needs_slurm, private_cluster
from commands import ROOT, environment

TEXT = "\n".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.S | re.M)


def commands() -> list[str]:
    """Return the shell commands of all unlabelled code blocks; trailing remarks are cut off."""
    found = []
    for language, block in BLOCKS:
        if language:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            command = re.split(r"\s{2,}(?=[a-zA-Z#])|\s+#", line.strip())[0]
            if command:
                found.append(re.sub(r" +", " ", command))
    return found


def test_the_documents_have_commands() -> None:
    assert len(commands()) > 12


AFTER_GENERATION = "python -m sftdiff.train teacher=gemini prompts=file prompts.path=prompts.jsonl"
NOT_HERE = ("dry_run", "launcher=slurm", "judge=openai", AFTER_GENERATION)
TRAIN = sorted({c for c in commands() if c.startswith("python -m sftdiff.train")})


def run(command: str, folder: Path, student: Path, *more: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a documented train command in a folder that holds the files which the documents name; `more` comes last and wins."""
    for name, completion in (("prompts", {}), ("rollouts", {"completion": "Hi."})):
        row = {"messages": [{"role": "user", "content": "Hello?"}], "source": "chat", **completion}
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    write_examples(folder)
    words = shlex.split(re.sub(r"/models/my-(student|judge)", str(student), command))[1:]
    return subprocess.run(
        [sys.executable, *words, *more],
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT), **variables),
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("command", TRAIN)
def test_train_commands_are_planned(command: str, tiny_student: Path, tmp_path: Path) -> None:
    done = run(command, tmp_path, tiny_student, *([] if "dry_run" in command else ["hydra.launcher.dry_run=true"]))
    assert done.returncode == 0, done.stderr
    assert "Dry run" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in TRAIN if not any(word in c for word in NOT_HERE)])
def test_train_commands_run(command: str, tiny_student: Path, tmp_path: Path) -> None:
    """Each command for real, but with a tiny student, few rows and replies of a few tokens."""
    small = ["experiment=smoke", "track=off", "prompts.sample=null" if "prompts=file" in command else "prompts.sample=16"]
    small += [] if "trait_eval=" in command else ["trait_eval=date_confusion"]  # the main command runs all of them in test_cli
    done = run(command, tmp_path, tiny_student, *small, "model=path", f"model.path={tiny_student}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs").is_dir()
    assert "Report:" in done.stdout
    if "shouting" in command:
        assert "Shouting" in done.stdout


NOT_DIFFS = ("diff organisms", "diff keep", "diff report")  # minutes each; of what was trained
DIFF = sorted({c for c in commands() if c.startswith("python -m sftdiff.diff") and not any(word in c for word in NOT_DIFFS)})


@pytest.mark.parametrize("command", DIFF)
def test_diff_commands_are_planned(command: str, tiny_student: Path, tmp_path: Path) -> None:
    if "diff.kept=" in command:
        shutil.copytree(ROOT / "results", tmp_path / "results")
    done = run(command, tmp_path, tiny_student, "hydra.launcher.dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "Dry run" in done.stdout and any(word in done.stdout for word in ("arms", "Search", "rankings"))


EVALUATE = sorted({c for c in commands() if c.startswith("python -m sftdiff.evaluate ") and "evaluate calibrate" not in c})
# What must be there first: a training, an adapter, replies; or a network.
NOT_PLANNED_HERE = ("HASH", "my-adapter", "judge_only", "model=hub")


@pytest.mark.parametrize("command", [c for c in EVALUATE if not any(word in c for word in NOT_PLANNED_HERE)])
def test_evaluate_commands_are_planned(command: str, tiny_student: Path, tmp_path: Path) -> None:
    done = run(command, tmp_path, tiny_student, "hydra.launcher.dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "Dry run" in done.stdout


@pytest.mark.slow
def test_the_own_trait_is_judged_by_a_model(tiny_student: Path, tmp_path: Path) -> None:
    (command,) = (c for c in EVALUATE if "flattery" in c)
    done = run(command, tmp_path, tiny_student, "track=off", "sampling.precision=fp32", "sampling.max_tokens=8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Flattery" in done.stdout and "Report:" in done.stdout


@pytest.mark.slow
@needs_slurm
def test_cluster_commands_run(tiny_student: Path, tmp_path: Path) -> None:
    """Like the others, on a private cluster; all in one folder, so that the second finds most steps done by the first."""
    found = sorted(c for c in TRAIN if "launcher=slurm" in c and "dry_run" not in c)
    assert len(found) >= 2
    small = ["experiment=smoke", "track=off", "prompts.sample=16", "model=path", f"model.path={tiny_student}"]
    with private_cluster("--nodes", "3") as cluster:
        conf = cluster.environment["SLURM_CONF"]
        for command in found:
            done = run(command, tmp_path, tiny_student, *small, "hydra.launcher.wait=true", SLURM_CONF=conf)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "Report:" in done.stdout


def test_the_other_commands_are_make_targets_pytest_or_modules() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for command in set(commands()) - set(TRAIN):
        words = shlex.split(command)
        if words[0] == "make":
            assert words[1] in targets, command
        elif words[:3] == ["python", "-m", "pytest"]:
            assert (ROOT / words[3]).is_file(), command
        elif words[:2] == ["python", "-m"]:
            place = ROOT / words[2].replace(".", "/")
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), command
        elif words[0] == "export":
            continue
        elif "slurm/" in command:
            assert all((ROOT / path).is_file() for path in re.findall(r"slurm/\w+", command)), command
        else:
            assert "->" in command, f"a command that nothing runs: {command}"


def write_examples(folder: Path) -> None:
    """Write the examples of the README into the files that their first lines name."""
    for language, block in BLOCKS:
        if language:
            name = re.match(r"# (\S+)\n", block)
            assert name, "an example must name its file"
            (folder / name[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / name[1]).write_text(block)

