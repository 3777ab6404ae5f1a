"""The DeepSpeed settings of a train step, and what DeepSpeed needs to know on a machine without MPI or an accelerator."""

import atexit
import os
from typing import Any

from sftdiff.errors import SftdiffError
from sftdiff.ranks import free_port


def deepspeed_config(settings: dict[str, Any], precision: str) -> dict[str, Any] | None:
    """Return the DeepSpeed config dict for a ZeRO stage, or None for stage 0.

    The optimizer stays Trainer's: DeepSpeed's own CPU and fused optimizers would be compiled on first use.
    """
    stage = settings["stage"]
    if stage == 0:
        return None
    if stage not in (1, 2, 3):
        raise SftdiffError(f"deepspeed.stage: {stage} is not 0, 1, 2 or 3")
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False, "contiguous_gradients": True}
    if settings["offload"]:
        zero["offload_optimizer"] = {"device": "cpu"}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": False},  # autocast with fp32 weights, as without DeepSpeed: the losses are the same
        "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16"},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
    }


def local_distributed_defaults() -> None:
    """Set the rendezvous of a single process, where no launcher did; on the CPU, start DeepSpeed's communication with gloo."""
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(free_port()))
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        # DeepSpeed's shared-memory collectives need a compiler and most of a minute at first use; gloo gives the same losses.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # With use_cpu, Trainer starts torch.distributed alone, and ZeRO-3 would divide the weights as on a single rank.
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False)


def close_at_exit() -> None:
    """End torch.distributed before the interpreter ends.

    A rank that aborts at exit makes the launcher kill the first rank, which may still be saving.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
