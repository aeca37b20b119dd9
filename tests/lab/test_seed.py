"""The tensor cache is filled from within meshd's own sandbox; engines may read it and not write."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from tests.lab.node import Node

MODEL = "/var/lib/mesh/models/big.gguf"
CACHE = "/var/lib/mesh/rpc-cache"
UNIT = "/usr/lib/systemd/system/meshd.service"
# What makes a service of it that goes on; the confinement is what is left.
_SERVICE = re.compile(r"(Type|NotifyAccess|Exec\w+|Watchdog\w+|Restart\w*|TimeoutStartSec)=")
WRITE_MODEL = """
import sys
import numpy as np
from gguf import GGUFWriter
writer = GGUFWriter(sys.argv[1], "llama")
writer.add_block_count(1)
writer.add_context_length(512)
writer.add_embedding_length(512)
writer.add_feed_forward_length(12288)
writer.add_head_count(4)
writer.add_tensor("token_embd.weight", np.zeros((512, 512), np.float16))
random = np.random.default_rng(1)
writer.add_tensor("blk.0.ffn_up.weight", random.random((12288, 512)).astype(np.float16))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


def test_the_brain_s_sandbox_lets_it_seed(make_node: Callable[[str], Node]) -> None:
    node = make_node("seed")
    python = "import glob; print(glob.glob('/usr/lib/meshd/bin/python*')[0])"
    interpreter = node.run(["python3", "-c", python], check=True).stdout.strip()
    node.run(["install", "-d", "-o", "_meshd", "/var/lib/mesh", "/var/lib/mesh/models"], check=True)
    node.run([interpreter, "-c", WRITE_MODEL, MODEL], check=True)
    confined = [line for line in node.read(UNIT).splitlines() if not _SERVICE.match(line)]
    text = "\n".join(confined).partition("[Install]")[0]
    run = f"Type=oneshot\nExecStart=/usr/bin/meshd seed {MODEL}"
    node.write(
        "/run/systemd/system/seed-lab.service", text.replace("[Service]", f"[Service]\n{run}")
    )
    node.run(["systemctl", "daemon-reload"], check=True)
    done = node.run(["systemctl", "start", "seed-lab.service"], timeout_s=60)
    assert done.returncode == 0, node.journal("-u", "seed-lab.service")
    listed = json.loads(node.run(["meshd", "seed", "--list", "--json"], check=True).stdout)
    assert listed["bytes"] == 12288 * 512 * 2
    (name,) = node.run(["ls", f"{CACHE}/rpc"], check=True).stdout.split()
    file = f"{CACHE}/rpc/{name}"
    assert node.run(["stat", "-c", "%U %a", file], check=True).stdout == "_meshd 644\n"
    # As an engine: another user, who reads what it is named after and cannot change it.
    assert node.run(["head", "-c", "1", file], user="nobody").returncode == 0
    for write in (f"echo x >>{file}", f"echo x >{CACHE}/rpc/x", f"mv {file} {file}x"):
        assert node.run(["sh", "-c", write], user="nobody").returncode != 0
    # What root adds by hand is meshd's all the same.
    node.run(["rm", "-r", CACHE], check=True)
    node.run(["meshd", "seed", MODEL], check=True)
    owners = node.run(["stat", "-c", "%U", CACHE, f"{CACHE}/rpc", f"{CACHE}/manifests"], check=True)
    assert owners.stdout == "_meshd\n" * 3
