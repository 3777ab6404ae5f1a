"""The wheel and the uninstalled checkout: both run from any directory, and a checkout's files win over an installed package."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from commands import ROOT, environment

pytestmark = pytest.mark.slow
LEFT_OUT = (
    ".git", ".venv", "runs", "build", "dist", "wandb", "*.egg-info", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache",
    ".hypothesis",
)  # fmt: skip
DRY_RUN = ["-m", "sftdiff.train", "-m", "teacher=gemini,olmo", "filter=none,keyword", "hydra.launcher.dry_run=true"]
FOLDERS = "import json, sys, sftdiff, sftdiff.conf, launch, launch.cli; launch.cli.register_all(); " + (
    "print(json.dumps([sys.modules[n].__file__ for n in ('sftdiff', 'sftdiff.conf', 'launch', 'hydra_plugins.sftdiff')]))"
)


def run(python: Path | str, arguments: list[str], cwd: Path, path: Path | None = None) -> str:
    """Run Python in `cwd`, with `path` in front of its packages, and return what it printed."""
    done = subprocess.run(
        [str(python), *arguments], cwd=cwd, env=environment(PYTHONPATH=str(path or "")), capture_output=True, text=True,
        timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_tree(target: Path) -> Path:
    return Path(shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*LEFT_OUT)))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the tree, so that the tree itself stays clean."""
    tree = copy_tree(tmp_path_factory.mktemp("source") / "tree")
    (tree / "runs").mkdir()
    (tree / "runs" / "notes.yaml").write_text("{}")
    run(sys.executable, ["-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"], tree)
    (found,) = (tree / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel; libraries come from this one, after its own packages."""
    target = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, ["-m", "venv", "--without-pip", str(target)], target.parent)
    python = target / "bin" / "python"
    pip = ["-m", "pip", "-q", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    run(sys.executable, pip, target.parent)
    (packages,) = target.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def files(folder: Path, pattern: str) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.glob(pattern) if p.is_file() and "__pycache__" not in p.parts}


def test_the_wheel_holds_every_module_and_every_file_of_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {f"sftdiff/{name}" for name in files(ROOT / "sftdiff", "**/*")}
    expected |= {f"sftdiff/conf/{name}" for name in files(ROOT / "conf", "**/*")}
    expected |= {f"launch/{name}" for name in files(ROOT / "launch", "*.py")}
    expected |= {f"hydra_plugins/sftdiff/{name}" for name in files(ROOT / "launch/hydra_plugin", "*.py")}
    assert held == expected
    assert len(files(ROOT / "sftdiff/data", "**/*")) > 8  # the comparison is not of nothing


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"sftdiff", "launch", "hydra_plugins"}
    assert not [n for n in names if "/tests/" in n or "runs/" in n or n.endswith((".pyc", ".so"))]
    assert "hydra_plugins/__init__.py" not in names  # it would hide the plugins of other packages
    assert wheel.stat().st_size < 10_000_000


def test_the_installed_package_runs_from_any_directory(installed: Path, tmp_path: Path) -> None:
    shown = run(installed, DRY_RUN, tmp_path)
    assert "4 cells" in shown and "Dry run" in shown
    assert shown == run(sys.executable, DRY_RUN, tmp_path, ROOT)
    assert all(str(installed.parent.parent) in file for file in json.loads(run(installed, ["-c", FOLDERS], tmp_path)))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in written] == ["plan.txt"]  # of a dry run: the plan, below runs/, and nothing else


def test_an_uninstalled_checkout_runs_from_any_directory(tmp_path: Path) -> None:
    tree, elsewhere = copy_tree(tmp_path / "tree"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(sys.executable, DRY_RUN, elsewhere, tree) == run(sys.executable, DRY_RUN, elsewhere, ROOT)
    assert all(file.startswith(str(tree)) for file in json.loads(run(sys.executable, ["-c", FOLDERS], elsewhere, tree)))


def test_a_checkout_wins_over_the_installed_package(installed: Path, tmp_path: Path) -> None:
    tree, elsewhere = copy_tree(tmp_path / "tree"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    config = tree / "conf" / "train" / "full.yaml"
    changed, count = re.subn(r"(?m)^lr: .*", "lr: 0.123", config.read_text())
    assert count == 1
    config.write_text(changed)
    show = ["-m", "sftdiff.train", "--cfg", "job", "--package", "train"]
    assert "lr: 0.123" in run(installed, show, elsewhere, tree)
    assert "lr: 0.123" in run(installed, show, tree)
    assert "lr: 0.123" not in run(installed, show, elsewhere)
    assert run(installed, DRY_RUN, elsewhere, tree) != run(installed, DRY_RUN, elsewhere)
    assert all(file.startswith(str(tree)) for file in json.loads(run(installed, ["-c", FOLDERS], elsewhere, tree)))
