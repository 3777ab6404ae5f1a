"""The copy of the code that jobs run from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, environment

import launch.snapshot
from launch.snapshot import take_snapshot
from sftdiff.errors import SftdiffError


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with a committed, an uncommitted and an ignored file."""
    tree = tmp_path / "tree"
    for name in ("sftdiff/a.py", "launch/b.py", "conf/c.yaml", "tests/d.py"):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text(f"# {name}\n")
    (tree / ".gitignore").write_text("*.log\n")
    git = ["git", "-C", str(tree), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    (tree / "sftdiff/new.py").write_text("")
    (tree / "sftdiff/run.log").write_text("")
    monkeypatch.setattr(launch.snapshot, "TREE", tree)
    return tree


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_uncommitted_changes_are_copied_and_ignored_files_are_not(checkout: Path, tmp_path: Path) -> None:
    first = take_snapshot(tmp_path / "runs", [], None)
    assert names(first) == {"sftdiff/a.py", "sftdiff/new.py", "launch/b.py", "conf/c.yaml", "SNAPSHOT.json"}
    assert json.loads((first / "SNAPSHOT.json").read_text())["git_dirty"] is True
    assert take_snapshot(tmp_path / "runs", [], None) == first
    (checkout / "sftdiff/a.py").write_text("# edited\n")
    second = take_snapshot(tmp_path / "runs", [], None)
    assert second != first and (first / "sftdiff/a.py").read_text() == "# sftdiff/a.py\n"


def test_the_sites_file_and_own_modules_are_copied(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_module.py").write_text("")
    (tmp_path / "my_package/inner").mkdir(parents=True)
    for name in ("__init__.py", "inner/deep.py"):
        (tmp_path / "my_package" / name).write_text("")
    (tmp_path / "site.sh").write_text("module load cuda\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = take_snapshot(tmp_path / "runs", ["my_module", "my_package", "yaml"], tmp_path / "site.sh")
    assert {"my_module.py", "my_package/__init__.py", "my_package/inner/deep.py", "env.sh"} < names(made)
    assert not [name for name in names(made) if "yaml" in name and not name.startswith("conf")]  # installed: the nodes have it
    (tmp_path / "my_filter.py").write_text("import my_words\n")
    (tmp_path / "my_words.py").write_text("")
    assert {"my_filter.py", "my_words.py"} < names(take_snapshot(tmp_path / "runs", ["my_filter"], None))
    with pytest.raises(SftdiffError, match="the module nowhere_to_be_found"):
        take_snapshot(tmp_path / "runs", ["nowhere_to_be_found"], None)


def test_a_snapshot_runs_without_the_checkout_and_makes_the_same_snapshot(tmp_path: Path) -> None:
    first = take_snapshot(tmp_path / "runs", [], None)
    code = (
        "import sys, pathlib, sftdiff.conf, launch.node\nfrom launch.snapshot import take_snapshot\n"
        "from sftdiff.steps import check_code\n"
        "check_code()\nprint(sftdiff.conf.__file__)\nprint(take_snapshot(pathlib.Path(sys.argv[1]), [], None))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "runs")]
    variables = environment(PYTHONPATH=str(first), PYTHONSAFEPATH="1", SFTDIFF_CODE=str(first))
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(first / "conf/__init__.py")
