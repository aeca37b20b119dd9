from __future__ import annotations

from pathlib import Path

import pytest

from meshd.config.addresses import parse_address
from meshd.config.settings import Config, GatewaySettings
from meshd.exposure import Exposure, closed, narrowed
from meshd.keys.edit import add_file, entry_text
from meshd.keys.key import ApiKey
from meshd.paths import under
from meshd.units.policy import load_policy


@pytest.mark.parametrize(
    ("listen", "own"),
    [
        (("127.0.0.1:9337",), ("127.0.0.1:9337",)),
        (("0.0.0.0:9337",), ("127.0.0.1:9337",)),
        (("[::]:9337",), ("127.0.0.1:9337",)),
        (("10.0.0.1:9337", "127.0.0.1:9337"), ("127.0.0.1:9337",)),
        (("10.0.0.1:9337", "10.0.0.1:9338"), ("127.0.0.1:9337", "127.0.0.1:9338")),
        (("localhost:9337", "10.0.0.1:9337"), ("localhost:9337",)),
        (("[::1]:9337", "10.0.0.1:9337"), ("[::1]:9337", "127.0.0.1:9337")),
        (("no address",), ("no address",)),
        ((), ()),
    ],
)
def test_without_keys_only_this_machine(listen: tuple[str, ...], own: tuple[str, ...]) -> None:
    assert narrowed(listen, keyed=False) == own
    assert narrowed(listen, keyed=True) == listen
    for text in own:
        assert text == "no address" or parse_address(text).loopback
    assert bool(closed(listen, keyed=False)) is (set(listen) != set(own))
    assert closed(listen, keyed=True) == ""


def test_the_sentence_says_what_is_closed_and_the_way_out() -> None:
    words = closed(("127.0.0.1:9337", "10.0.0.1:9337"), keyed=False)
    assert "10.0.0.1:9337 stays closed" in words
    assert "meshd keys add NAME" in words
    assert "\n" not in words


async def test_the_brain_sees_keys_come_and_go(tmp_path: Path) -> None:
    paths = under(tmp_path)
    wide = Config(gateway=GatewaySettings(listen=("0.0.0.0:9337",)))
    exposure = Exposure(paths)
    assert await exposure.listen(wide) == ("127.0.0.1:9337",)
    assert "stays closed" in await exposure.closed(wide)
    key = ApiKey("a", bytes(32))
    path = add_file(paths.keys, key, entry_text(key), group=None)
    assert await exposure.listen(wide) == ("0.0.0.0:9337",)
    assert await exposure.closed(wide) == ""
    path.write_text("keys: [")  # a slip must not shut out who has a key
    assert await exposure.listen(wide) == ("0.0.0.0:9337",)
    path.unlink()
    assert await exposure.listen(wide) == ("127.0.0.1:9337",)


def test_root_allows_what_it_has_keys_for(tmp_path: Path) -> None:
    paths = under(tmp_path)
    paths.config.parent.mkdir(parents=True)
    paths.config.write_text("gateway: {listen: ['0.0.0.0:9337']}\n")

    def allowed() -> frozenset[str]:
        nothing = tmp_path / "none"
        owner = paths.config.stat().st_uid
        policy, warnings = load_policy(
            paths, remembered=tmp_path / "allowed.json", trial=nothing, root=owner
        )
        assert not warnings
        return policy.listen

    assert allowed() == {"127.0.0.1:9337"}
    key = ApiKey("a", bytes(32))
    add_file(paths.keys, key, entry_text(key), group=None)
    assert allowed() == {"127.0.0.1:9337", "0.0.0.0:9337"}
