"""Start-up of a run on several hosts."""

from __future__ import annotations

import os

import jax

from medvlp_jax.errors import UserError

# What the launchers that jax recognises by itself set: Slurm, Open MPI, and a Cloud TPU pod slice.
_CLUSTER_SIGNS = ("SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri")


def initialize() -> bool:
    """Joins the other processes when there are any; call before anything touches a device.

    * `MEDVLP_COORDINATOR=host:port` with `MEDVLP_NUM_PROCESSES` and `MEDVLP_PROCESS_ID`: explicit.
    * a TPU pod slice (several worker host names in the environment), Slurm or Open MPI: jax finds the
      rest itself.

    Returns:
        True if this is a run of several processes.

    Raises:
        UserError: the coordinator is set but the number or index of the process is not.
    """
    coordinator = os.environ.get("MEDVLP_COORDINATOR")
    if coordinator:
        try:
            count = int(os.environ["MEDVLP_NUM_PROCESSES"])
            index = int(os.environ["MEDVLP_PROCESS_ID"])
        except (KeyError, ValueError):
            raise UserError(
                "MEDVLP_COORDINATOR is set, so MEDVLP_NUM_PROCESSES (how many) and "
                "MEDVLP_PROCESS_ID (0 to how many - 1) must be whole numbers too"
            ) from None
        jax.distributed.initialize(coordinator, num_processes=count, process_id=index)
    elif _cluster_detected():
        jax.distributed.initialize()
    return jax.process_count() > 1 if (coordinator or _cluster_detected()) else False


def _cluster_detected() -> bool:
    if any(name in os.environ for name in _CLUSTER_SIGNS):
        return int(os.environ.get("SLURM_NTASKS", os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))) > 1
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return len([h for h in hosts.split(",") if h and h != "localhost"]) > 1


def is_main_process() -> bool:
    """True on the process that prints, writes logs and exports."""
    return jax.process_index() == 0
