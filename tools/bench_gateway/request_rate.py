"""As many plain requests as a proxy answers, from so many clients that each wait for the answer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from tools.bench_gateway.http_lane import Lane
from tools.bench_gateway.process_tree import Tree

_LEAST_ANSWER_BYTES = 500


@dataclass(frozen=True, slots=True)
class Rate:
    """:ivar answered: whole answers with status 200. :ivar cpu_s: of the proxy's processes."""

    answered: int
    failed: int
    wall_s: float
    cpu_s: float


class _Asker(Lane):
    def __init__(self, port: int, request: bytes) -> None:
        super().__init__(port)
        self._request = request
        self._size = 0
        self.stopped = False
        self.answers = self.failures = 0

    def go(self) -> None:
        self._size = 0
        self.ask(self._request)

    def body(self, data: bytes) -> None:
        self._size += len(data)

    def answered(self) -> None:
        if self.status == 200 and self._size >= _LEAST_ANSWER_BYTES:
            self.answers += 1
        else:
            self.failures += 1
        if not self.stopped:
            self.go()

    def broke(self, why: str) -> None:
        self.failures += 1
        if not self.stopped:
            # Not at once: a proxy that refuses all would keep us busy.
            asyncio.get_running_loop().call_later(0.05, self._again)

    def _again(self) -> None:
        if not self.stopped:
            self.go()


async def measure_rate(
    port: int, tree: Tree, request: bytes, clients: int, for_s: float, warm_s: float
) -> Rate:
    """:raises LaneError: the proxy takes no connections."""
    askers = [_Asker(port, request) for _ in range(clients)]
    try:
        for asker in askers:
            await asker.open()
            asker.go()
        await asyncio.sleep(warm_s)
        before = [(asker.answers, asker.failures) for asker in askers]
        cpu_s, start_s = tree.cpu_s(), time.monotonic()
        await asyncio.sleep(for_s)
        wall_s, cpu_s = time.monotonic() - start_s, tree.cpu_s() - cpu_s
        return Rate(
            sum(asker.answers for asker in askers) - sum(count for count, _ in before),
            sum(asker.failures for asker in askers) - sum(count for _, count in before),
            wall_s,
            cpu_s,
        )
    finally:
        for asker in askers:
            asker.stopped = True
            asker.close()
