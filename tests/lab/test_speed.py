"""A node measures itself in the sandbox of its own service."""

from __future__ import annotations

from tests.lab import mesh
from tests.lab.node import Node

DROPIN = "/etc/systemd/system/meshd.service.d/speed.conf"


def test_devices_are_measured_under_systemd(node: Node) -> None:
    # One thread: two that wait for each other on a busy machine take minutes.
    lines = ("[Service]", "Environment=MESHD_MEASURE_SPEED=at-once", "CPUAffinity=0", "")
    node.write(DROPIN, "\n".join(lines))
    mesh.start(node)

    def measured() -> bool:
        devices = {one["id"]: one for one in mesh.status(node).get("devices", [])}
        return bool(devices.get("ram", {}).get("bandwidth_bytes_s"))

    node.wait(measured, 150, "the speed of the node's memory", every_s=0.5)
    assert "GB/s" in node.run(["meshd", "status"], check=True).stdout
    assert "in another node's split" in node.run(["meshd", "bench"], check=True).stdout
    text = node.http("/metrics", url="http://127.0.0.1:3131").body
    assert 'meshd_device_bandwidth_bytes_per_second{device="ram"}' in text
    # Nothing is left of it but what it found.
    assert not node.run(["find", "/var/lib/mesh", "-name", ".speed-*"], check=True).stdout
    # And the engines were not touched by it.
    assert all(mesh.engine_pids(node).values())
