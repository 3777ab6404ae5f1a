"""What the ranks of one training tell each other before torch.distributed runs, through the step's directory.

The first rank decides whether there is anything to do (the step may be done, or claimed by somebody else), and on which port
the ranks meet: it knows what is free on its node. The others wait for its word. Imports no torch: it runs before torch is loaded.
"""

import contextlib
import json
import math
import os
import random
import socket
import time
from pathlib import Path

from sftdiff.errors import SftdiffError
from sftdiff.records import write_json

POLL_SECONDS = 0.2
PORTS = range(20000, 32768)
DECISION = ".ranks.json"


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_rank() -> bool:
    return rank() == 0


def host_name() -> str:
    """Return the node's name; several nodes of a development cluster share one host."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def place() -> str:
    """Return "rank R on HOST: " for messages, or "" where there is one rank only."""
    return f"rank {rank()} on {host_name()}: " if world_size() > 1 else ""


def _launch() -> str:
    """Return what tells this start of the ranks from all others, the same on every rank."""
    if "SLURM_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_JOB_ID']}/{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    return "/".join(os.environ.get(name, "") for name in names)


def tell_ranks(directory: Path, attempt: int) -> None:
    """Tell the other ranks which attempt they take part in; 0: there is nothing to do."""
    if world_size() > 1:
        launch, port = _launch(), os.environ.setdefault("MASTER_PORT", str(free_port()))
        write_json(directory / DECISION, {"launch": launch, "attempt": attempt, "port": port})


def await_first_rank(directory: Path, patience: float = math.inf) -> int:
    """Return the attempt that the first rank has begun, or 0. If the first rank dies, the launcher of the ranks ends the wait.

    Raises TimeoutError when the first rank has said nothing for `patience` seconds.
    """
    limit = time.monotonic() + patience
    while time.monotonic() < limit:
        try:
            told = json.loads((directory / DECISION).read_text())
        except (OSError, json.JSONDecodeError):
            told = {}
        if told.get("launch") == _launch():
            os.environ["MASTER_PORT"] = told["port"]
            return int(told["attempt"])
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"the first rank said nothing in {directory} within {patience:.0f} s")


def free_port() -> int:
    """Return a port that nothing on this machine listens on now.

    It is one that the kernel gives to no outgoing connection: seconds pass until it is used.
    """
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):  # training's random numbers stay as they are
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise SftdiffError(f"{host_name()} has no free port between {PORTS.start} and {PORTS.stop - 1}, where ranks could meet")


def first_failure(path: Path) -> bool:
    """Tell whether another rank has recorded a failure of this attempt already."""
    return world_size() > 1 and path.exists()
