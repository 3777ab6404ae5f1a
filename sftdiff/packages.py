"""Make a folder of this source tree importable under its installed package name.

`conf/` is installed as `sftdiff.conf` and `launch/hydra_plugin/` as `hydra_plugins.sftdiff`. An uninstalled checkout does not
know those names, and with an editable install a snapshot of the code would import the live tree; so the folder that lies
beside the running code always wins.
"""

import importlib.util
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent


def prefer_beside(package: str, folder: str) -> None:
    """Import `folder` (relative to the tree of the running code) as `package`, if the tree has that folder.

    In an installed wheel the folder is not there, and the ordinary import finds the package.
    """
    directory = TREE / folder
    init = directory / "__init__.py"
    if package in sys.modules or not init.is_file():
        return
    spec = importlib.util.spec_from_file_location(package, init, submodule_search_locations=[str(directory)])
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {package} from {directory}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    spec.loader.exec_module(module)
    parent, _, name = package.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], name, module)
