"""A copy of the code that jobs run from, so that editing the checkout does not change what is queued."""

import hashlib
import importlib
import importlib.util
import shutil
import site
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from sftdiff.errors import SftdiffError
from sftdiff.packages import TREE
from sftdiff.provenance import git_state
from sftdiff.records import write_json

PACKAGES = ("sftdiff", "launch", "conf")


def take_snapshot(runs: Path, plugins: Sequence[str], env_file: Path | None) -> Path:
    """Copy the running code, the modules of the user's plugins and the site's env.sh into runs/code/HASH; return that folder.

    The same content is copied once. Uncommitted changes are part of it; files that git ignores are not.
    """
    files = dict(_code_files())
    for name in plugins:
        files |= dict(_plugin_files(name))
    if env_file is not None:
        files["env.sh"] = env_file
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{hashlib.sha256(files[name].read_bytes()).hexdigest()}\n".encode())
    target = (runs / "code" / total.hexdigest()[:12]).absolute()
    if not target.exists():
        _copy(files, target)
    return target


def _copy(files: dict[str, Path], target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    for name, source in files.items():
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, temporary / name)
    write_json(temporary / "SNAPSHOT.json", {"from": str(TREE), **git_state(TREE / "sftdiff")})
    try:
        temporary.rename(target)
    except OSError:
        shutil.rmtree(temporary)
        if not target.exists():  # else somebody else was faster
            raise


def _code_files() -> Iterator[tuple[str, Path]]:
    command = ["git", "-C", str(TREE), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PACKAGES]
    listed = subprocess.run(command, capture_output=True, text=True) if (TREE / ".git").exists() else None
    if listed is not None and listed.returncode == 0:
        names = [name for name in listed.stdout.split("\0") if name and (TREE / name).is_file()]
    else:  # an installed wheel, or a snapshot
        tops = [top for top in PACKAGES if top != "conf" or (TREE / top / "config.yaml").exists()]
        names = [str(p.relative_to(TREE)) for top in tops for p in _sources(TREE / top)]
    yield from ((name, TREE / name) for name in names)


def _sources(path: Path) -> Iterator[Path]:
    yield from (p for p in sorted(path.rglob("*")) if p.is_file() and "__pycache__" not in p.parts)


def _plugin_files(name: str) -> Iterator[tuple[str, Path]]:
    """Yield the files of a user's top-level module or package, if it is not an installed one."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
        raise SftdiffError(f"the module {name}, which a filter or scorer of this sweep needs, cannot be found from here")
    origin = Path(spec.origin).resolve()
    if _is_installed(origin):
        return
    if origin.name != "__init__.py":
        yield origin.name, origin
        folder = origin.parent
    else:
        yield from ((f"{name}/{p.relative_to(origin.parent)}", p) for p in _sources(origin.parent))
        folder = origin.parent.parent
    importlib.import_module(name)
    for module in list(sys.modules.values()):  # what it has imported from the folder that it lies in
        path = Path(getattr(module, "__file__", None) or "/").resolve()
        if path.suffix == ".py" and path.is_relative_to(folder) and not _is_installed(path):
            yield str(path.relative_to(folder)), path


def _is_installed(path: Path) -> bool:
    installed = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), site.getusersitepackages()]
    return any(path.is_relative_to(Path(folder).resolve()) for folder in installed)
