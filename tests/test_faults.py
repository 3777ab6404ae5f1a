"""A file that cannot be composed, and a key that there is not: one message with the place and the way on."""

from pathlib import Path

import pytest
from commands import run_train
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath
from hydra.errors import HydraException
from hydra.types import RunMode
from yaml import YAMLError

from launch.cli import register_all
from launch.faults import config_folders, fault_of_file, unknown_key

DRY = "hydra.launcher.dry_run=true"


def file_in(folder: Path, content: bytes, option: str = "filter/mine") -> Path:
    path = folder / f"{option}.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def fault(folder: Path, *overrides: str) -> str | None:
    """Compose as Hydra does before it calls a sweeper, and return what is told of the error."""
    register_all()
    search = create_config_search_path("pkg://sftdiff.conf")
    search.prepend("command-line", f"file://{folder}", "schema")  # which Hydra wants last
    return fault_of_file(raised_by(search, *overrides), config_folders(["--config-dir", str(folder)]))


def raised_by(search: ConfigSearchPath, *overrides: str) -> Exception:
    with pytest.raises((HydraException, YAMLError, UnicodeDecodeError)) as raised:
        ConfigLoaderImpl(search).load_configuration("config", list(overrides), RunMode.MULTIRUN)
    return raised.value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: mine\nthreshold: [1, 2\nparams: {}\n", ", line 3: not valid YAML (expected ',' or ']', but got ':')"),
        (b"name: mine\n\tthreshold: 1\n", ", line 2: not valid YAML (found character '\\t' that cannot start any token)"),
        (b"name: mine\nname: yours\n", ", line 2: not valid YAML (found duplicate key name)"),
        (b"name: mine\nthreshhold: 1\n", ": there is no setting filter.threshhold; known there: name, _target_, params, part,"),
        (b"name: mine\nthreshold: [1]\n", ": filter.threshold: Value '[1]' of type 'ListConfig' could not be converted to Float"),
        (b"- name\n", ": the whole: Merge error: list is not a subclass of FilterConfig"),
        (b"defaults: [other]\nname: mine\n", ": Could not load 'filter/other'"),
        (b"name: ${name\n", ": cannot be read (no viable alternative at input '${name'"),
        (b"name: \xff\n", ": cannot be read ('utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_fault_names_its_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = file_in(tmp_path, content)
    told = fault(tmp_path, "filter=mine")
    assert told is not None and told.startswith(f"{path}{message}")


def test_a_fault_of_the_command_line_is_no_files(tmp_path: Path) -> None:
    file_in(tmp_path, b"- name\n")
    assert fault(tmp_path, "filter=nobody") is None
    assert fault(tmp_path, "train.epohcs=3") is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epohcs=3", "train.epohcs: there is no such setting; did you mean epochs? Known in train: batch_size, epochs, "),
        ("trian.lr=3", "trian: there is no such setting; did you mean train? Known: "),
        ("diff.arms.prompt_sawp.seeds=1", "diff.arms.prompt_sawp: there is no such setting; did you mean prompt_swap? Known in"),
        ("train.epochs=many", None),
    ],
)
def test_an_unknown_key_names_the_known_ones(override: str, message: str | None) -> None:
    register_all()
    told = unknown_key(raised_by(create_config_search_path("pkg://sftdiff.conf"), "experiment=diff", override))
    assert told is None if message is None else told is not None and told.startswith(message)


def test_only_where_users_name_the_keys_a_new_one_can_be_added() -> None:
    register_all()
    search = create_config_search_path("pkg://sftdiff.conf")
    assert "+diff.arms.mine=..." in str(unknown_key(raised_by(search, "experiment=diff", "diff.arms.mine.seeds=1")))
    assert "+" not in str(unknown_key(raised_by(search, "train.mine=1")))


@pytest.mark.parametrize(
    ("option", "content", "override", "message"),
    [
        ("filter/mine", b"name: [mine\n", "filter=mine", "conf/filter/mine.yaml, line 2: not valid YAML ("),
        ("experiment/mine", b"# @package _global_\ntrain: {lrr: 3}\n", "experiment=mine", "there is no setting train.lrr; known"),
        ("filter/mine", b"nam: mine\n", "filter=none,mine", "conf/filter/mine.yaml: there is no setting filter.nam; known"),
    ],
    ids=["composed first", "of the whole config", "composed for a cell"],
)
def test_a_command_says_it_in_one_line(option: str, content: bytes, override: str, message: str, tmp_path: Path) -> None:
    file_in(tmp_path / "conf", content, option)
    done = run_train("--config-dir", "conf", override, DRY, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert message in line and line.endswith(". Mend the file and run the same command again")
