"""Joining a mesh and parting from it: what runs on a node as long as it is a member."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from meshd.config.settings import Config, MeshSettings
from meshd.errors import UserError
from meshd.mesh.addresses import told_addresses
from meshd.mesh.credentials import Credentials, credentials, remove_tls, write_tls
from meshd.mesh.session import MeshSession
from meshd.own_record import Self
from meshd.paths import Paths
from meshd.rtt.prober import Prober

_log = structlog.get_logger(__name__)

# An address may come after the node, from a router say, or change.
_ADDRESSES_EVERY_S = 5.0
# Certificates last a year, and a day is enough to see that one nears its end.
_CERTIFICATE_CHECK_S = 86_400.0
# Not while the node starts, and then seldom: it reads much and finds little new.
_DOCTOR_FIRST_S = 30.0
_DOCTOR_EVERY_S = 1800.0


@dataclass(slots=True)
class Joined:
    """A mesh that this node takes part in. :ivar since_s: monotonic."""

    settings: MeshSettings
    lan: bool
    own: Self
    credentials: Credentials
    session: MeshSession
    prober: Prober
    tasks: tuple[asyncio.Task[None], ...]
    since_s: float
    checked_s: float
    looked_s: float

    def suits(self, config: Config) -> bool:
        """Whether the configuration still means this mesh, reached in this way."""
        return (self.settings, self.lan) == (config.mesh, config.discovery.lan)

    def reached(self) -> frozenset[str]:
        """Addresses of other nodes, of each the one that answers best."""
        best = map(self.prober.best_address, (one.id for one in self.session.view().members))
        return frozenset(filter(None, best))

    async def keep_up(self, tls: Path, now_s: float) -> None:
        """Notice other addresses of this machine, and a certificate that nears its end; most calls
        do nothing.
        """
        if now_s - self.looked_s >= _ADDRESSES_EVERY_S:
            self.looked_s = now_s
            addresses = await asyncio.to_thread(told_addresses, self.settings)
            if addresses != self.own.addresses:
                _log.info("other addresses", addresses=addresses, before=self.own.addresses)
                self.own = Self(self.own.id, addresses)
        await self._renew(tls, now_s)

    async def _renew(self, tls: Path, now_s: float) -> None:
        if now_s - self.checked_s < _CERTIFICATE_CHECK_S:
            return
        self.checked_s = now_s
        try:
            changed = await asyncio.to_thread(write_tls, self.credentials, tls, datetime.now(UTC))
        except UserError as error:
            _log.error("the certificate is not renewed", error=str(error))
            return
        if changed:
            self.session.renewed()

    async def part(self, *, back_in_s: float | None) -> None:
        """:param back_in_s: None to leave for good, else how soon this node is back."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.session.close(back_in_s)


async def join(
    config: Config,
    paths: Paths,
    *,
    on_change: Callable[[], None],
    wake: Callable[[], None],
    examine: Callable[[], Awaitable[None]],
    now_s: float,
) -> Joined | None:
    """Begin to take part; None where there is no secret, so that the node is alone.

    :param on_change: the view is another. :param wake: a round trip is another.
    :param examine: called now and then, to see how this node is.
    :raises UserError: it cannot: the secret, the key or a certificate cannot be used, or the
        configuration wants a mesh and there is no secret.
    """
    settings = config.mesh
    secret = Path(settings.secret)
    held = await asyncio.to_thread(credentials, paths.state, secret, settings.name)
    if held is None:
        await asyncio.to_thread(remove_tls, paths.tls)
        if settings.peers or config.discovery.lan:
            raise UserError(
                f"alone: mesh.yaml names other nodes, but there is no secret at {secret}",
                hint="copy it from another node, or `meshd mesh secret --write` for a new mesh",
            )
        return None
    await asyncio.to_thread(write_tls, held, paths.tls, datetime.now(UTC))
    addresses = await asyncio.to_thread(told_addresses, settings)
    session = MeshSession(
        held,
        settings,
        paths.state,
        paths.tls,
        lan=config.discovery.lan,
        on_change=on_change,
        patient=True,
    )
    await session.start()
    prober = Prober(held.node_id, on_change=wake)
    _log.info("in the mesh", mesh=held.mesh_id, node=held.node_id, addresses=addresses)
    return Joined(
        settings=settings,
        lan=config.discovery.lan,
        own=Self(held.node_id, addresses),
        credentials=held,
        session=session,
        prober=prober,
        tasks=(
            asyncio.create_task(prober.run(), name="rtt"),
            asyncio.create_task(_rounds(examine), name="doctor"),
        ),
        since_s=now_s,
        checked_s=now_s,
        looked_s=now_s,
    )


async def _rounds(examine: Callable[[], Awaitable[None]]) -> None:
    await asyncio.sleep(_DOCTOR_FIRST_S)
    while True:
        try:
            await examine()
        except (UserError, OSError) as error:
            _log.warning("the doctor could not look", error=str(error))
        await asyncio.sleep(_DOCTOR_EVERY_S)
