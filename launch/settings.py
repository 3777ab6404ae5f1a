"""Settings of sftdiff's Hydra plugins. They travel to the jobs of stock launchers, which can import `launch` only."""

from dataclasses import dataclass, field
from typing import Any, Optional

from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf


@dataclass
class SftdiffSweeperConfig:
    _target_: str = "hydra_plugins.sftdiff.SftdiffSweeper"


@dataclass
class LocalLauncherConfig:
    _target_: str = "hydra_plugins.sftdiff.LocalLauncher"
    dry_run: bool = False
    processes: int = 1  # ranks of a train step; more than one needs deepspeed=zero1|zero2|zero3 or plain data parallel


@dataclass
class JobConfig:
    """What one kind of job asks of Slurm; what is not set is as the launcher says for every job."""

    timeout_min: Optional[int] = None
    cpus_per_task: Optional[int] = None
    gpus_per_node: Optional[int] = None
    tasks_per_node: Optional[int] = None
    mem_gb: Optional[int] = None
    nodes: Optional[int] = None
    partition: Optional[str] = None
    qos: Optional[str] = None
    constraint: Optional[str] = None
    exclude: Optional[str] = None
    gres: Optional[str] = None
    cpus_per_gpu: Optional[int] = None
    gpus_per_task: Optional[int] = None
    mem_per_gpu: Optional[str] = None
    mem_per_cpu: Optional[str] = None
    account: Optional[str] = None
    signal_delay_s: Optional[int] = None
    array_parallelism: Optional[int] = None
    additional_parameters: Optional[dict[str, Any]] = None


@dataclass
class SlurmLauncherConfig(SlurmQueueConf):
    """What the stock Slurm launcher knows of a job, and what a sweep of steps needs besides."""

    _target_: str = "hydra_plugins.sftdiff.SlurmLauncher"
    submitit_folder: str = ""  # not used: logs lie in runs/sweeps/NAME/chunks
    name: str = ""  # not used: an array is called after the sweep and the step kind
    dry_run: bool = False
    wait: bool = False
    resources: dict[str, JobConfig] = field(default_factory=dict)  # step kind -> what differs from the settings for every job
    students: dict[str, dict[str, JobConfig]] = field(default_factory=dict)  # student -> step kind -> what differs from those
    env_file: Optional[str] = None  # sourced by each job first; slurm/env.sh if there is one
    max_restarts: int = 3  # how often a job whose process was killed starts again by itself
    max_array_size: Optional[int] = None  # tasks of an array; null: what the cluster allows
    max_submit: Optional[int] = None  # jobs in the queue at one time; null: what the accounting database says
