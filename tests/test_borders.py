"""The borders between the packages: the login node's side never loads torch, and the compute node's side never loads Hydra.

`violations` reads imports from the source; that it finds them is tested on planted ones. So is what a process loads.
"""

import ast
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, environment

HEAVY = {"torch", "transformers", "deepspeed", "accelerate", "peft", "datasets", "inspect_ai", "wandb", "trl"}
HYDRA = {"hydra", "hydra_plugins", "submitit"}
LAUNCH = sorted(p.stem for p in (ROOT / "launch").glob("*.py") if p.stem != "__init__")


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names of all modules that a source file imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_entry(tree: ast.Module) -> bool:
    """Tell whether a file of sftdiff is a command that hands its arguments to Hydra: it does so only when run as a program."""
    guarded = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "__name__ == '__main__'"]
    return any("run_hydra(" in ast.unparse(n) for n in guarded)


def violations(root: Path) -> list[str]:
    """Return "FILE imports MODULE" for each import that crosses a border."""
    found = []
    for path in sorted([*root.glob("sftdiff/**/*.py"), *root.glob("launch/**/*.py"), *root.glob("conf/**/*.py")]):
        tree = ast.parse(path.read_text())
        for name in imports(tree):
            top, in_launch = name.partition(".")[0], path.is_relative_to(root / "launch")
            entry = not in_launch and is_entry(tree) and name.startswith("launch.cli.")
            if (top in HEAVY if in_launch else top in HYDRA or (top == "launch" and not entry)):
                found.append(f"{path.relative_to(root)} imports {name}")
    return found


def test_no_import_crosses_a_border() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("launch/plan.py", "import torch"),
        ("launch/run.py", "from transformers import AutoModel"),
        ("launch/hydra_plugin/__init__.py", "def f():\n    import deepspeed.zero"),
        ("sftdiff/sft.py", "import launch"),
        ("sftdiff/sft.py", "from launch.plan import Plan"),
        ("sftdiff/traits/rules.py", "def f():\n    from hydra import compose"),
        ("sftdiff/train.py", "from launch.plan import Plan\nif __name__ == '__main__':\n    run_hydra(1)"),
        ("sftdiff/train.py", "from launch.cli import run_hydra\nrun_hydra(1)"),
        ("conf/__init__.py", "import submitit"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, line: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(f"import json\n{line}\n")
    assert len(violations(tmp_path)) == 1 and violations(tmp_path)[0].startswith(f"{file} imports ")


def test_entry_modules_may_import_launch_cli(tmp_path: Path) -> None:
    (tmp_path / "sftdiff").mkdir()
    text = "from launch.cli import run_cell, run_hydra\nif __name__ == '__main__':\n    run_hydra(run_cell)\n"
    (tmp_path / "sftdiff/mine.py").write_text(text)
    assert violations(tmp_path) == []
    assert all(is_entry(ast.parse((ROOT / f"sftdiff/{name}.py").read_text())) for name in ("train", "rollouts", "evaluate"))


def loaded(code: str, names: set[str]) -> str:
    """Run Python code in a process of its own and return which of the modules it loaded, as text."""
    code += f"\nimport sys\nprint('loaded', sorted({names!r} & set(sys.modules)))"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=folder, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_importing_all_of_launch_loads_no_torch() -> None:
    code = "".join(f"import launch.{name}\n" for name in LAUNCH) + "from launch.cli import register_all\nregister_all()"
    assert loaded(code, HEAVY) == "loaded []"


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        ("run_cell", ["-m", "teacher=gemini,olmo", "filter=none,keyword,random"]),
        ("run_evaluation", ["-m", "model=smollm2_135m,api", "model.id=openai/m"]),
    ],
)
def test_planning_loads_no_torch(task: str, arguments: list[str]) -> None:
    command = ["sftdiff", *arguments, "hydra.launcher.dry_run=true"]
    code = f"import sys\nsys.argv = {command}\nfrom launch.cli import {task}, run_hydra\nrun_hydra({task})"
    assert loaded(code, HEAVY) == "loaded []"


def test_reading_the_scenarios_of_another_package_loads_no_torch() -> None:
    assert loaded("from sftdiff.traits import load_trait\nassert load_trait('blackmail', 'full').controls", HEAVY) == "loaded []"


@pytest.mark.parametrize("module", ["sftdiff.config", "sftdiff.steps", "sftdiff.records", "sftdiff.claims"])
def test_the_base_of_sftdiff_loads_neither_torch_nor_hydra(module: str) -> None:
    assert loaded(f"import {module}", HEAVY | HYDRA | {"launch"}) == "loaded []"


@pytest.mark.slow
def test_running_steps_loads_no_hydra() -> None:
    modules = "[importlib.import_module(k.partition(':')[0]) for k in KINDS.values()]"
    code = f"import importlib\nfrom sftdiff.steps import KINDS\n{modules}"
    assert loaded(code, HYDRA | {"launch"}) == "loaded []"


def test_the_check_of_loaded_modules_can_fail() -> None:
    assert loaded("import hydra", HYDRA) == "loaded ['hydra']"
