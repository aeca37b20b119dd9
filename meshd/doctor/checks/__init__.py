"""The checks, in the order in which a person would ask."""

from __future__ import annotations

from meshd.doctor.checks import (
    cgroup_memory,
    clock,
    config_usable,
    debian_service,
    disk_space,
    engine_present,
    engine_rpc,
    expert_shards,
    folder_rights,
    gpu_backend,
    gpu_pinned,
    gpu_problem,
    memory_policy,
    model_files,
    model_served,
    node_degraded,
    node_running,
    ping_sockets,
    ports_free,
    systemd_version,
    units_failed,
)
from meshd.doctor.evidence import Check

ALL: tuple[Check, ...] = (
    config_usable.check,
    systemd_version.check,
    node_running.check,
    node_degraded.check,
    units_failed.check,
    engine_present.check,
    model_files.check,
    model_served.check,
    ports_free.check,
    folder_rights.check,
    disk_space.check,
    gpu_pinned.check,
    gpu_backend.check,
    gpu_problem.check,
    engine_rpc.check,
    expert_shards.check,
    debian_service.check,
    cgroup_memory.check,
    memory_policy.check,
    clock.check,
    ping_sockets.check,
)
