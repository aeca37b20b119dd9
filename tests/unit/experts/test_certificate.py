"""Certificates are read as they were written, and nothing else is believed."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from meshd.experts import certificate
from meshd.experts.certificate import BYTES_MAX, Certificate, CertificateError
from meshd.experts.logits_origin import LogitsOrigin
from meshd.experts.shard_key import shard_key
from meshd.experts.wish import Shard
from meshd.quality import Fidelity

FINGERPRINT, RANKING = "0123456789abcdef", "fedcba9876543210"
SELECTION = ((), (0, 2, 5), (1, 2, 3))
KEY = shard_key(FINGERPRINT, RANKING, SELECTION)
GOOD = Certificate(
    key=KEY,
    fingerprint=FINGERPRINT,
    ranking=RANKING,
    shard_sha256="a" * 64,
    size_bytes=1_000_000,
    experts=3,
    experts_all=6,
    selection=SELECTION,
    mass=0.8,
    least_mass=0.7,
    texts={"prose": "b" * 64, "contracts": "c" * 64},
    logits={"prose": LogitsOrigin("d" * 64), "contracts": LogitsOrigin("e" * 64, "n-other")},
    engine="0.7.0 1:0.7.0+dfsg-2",
    tokens=6144,
    measured=(Fidelity("prose", 0.97, 1.03, 0.02), Fidelity("contracts", 0.9, 1.1, 0.2)),
)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    certificate.write(path, GOOD)
    assert certificate.read(path, key=KEY) == GOOD
    assert [one.name for one in tmp_path.iterdir()] == ["c.json"]


def test_the_largest_there_can_be_is_read() -> None:
    selection = (tuple(range(512)),) * 256
    large = replace(
        GOOD,
        key=shard_key(FINGERPRINT, RANKING, selection),
        selection=selection, experts=512, experts_all=512,
    )  # fmt: skip
    text = certificate.encode(large)
    assert certificate.decode(text, key=large.key) == large
    assert len(text) < BYTES_MAX


def test_a_shard_is_told_by_its_certificate() -> None:
    shard = certificate.shard_of(GOOD, Path("/x/y.gguf"))
    assert shard == Shard(
        KEY, FINGERPRINT, "/x/y.gguf", 1_000_000, "a" * 64, RANKING, 3, 6, SELECTION, 0.8, 0.7,
        GOOD.measured,
    )  # fmt: skip


def changed(**changes: Any) -> bytes:
    told = json.loads(certificate.encode(GOOD))
    told.update(changes)
    return json.dumps(told).encode()


def measured(**changes: Any) -> bytes:
    figures = json.loads(certificate.encode(GOOD))["measured"]
    figures[1].update(changes)
    return changed(measured=figures)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "malformed"),
        (b"{", "malformed"),
        (b"[]", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 100_000, "malformed"),
        (b" " * (BYTES_MAX + 1), "bytes"),
        (changed(version=1), "version 1, not 2"),
        (changed(version="2"), "malformed"),
        (changed(key="another"), "another shard"),
        (changed(fingerprint="0" * 16), "its experts"),
        (changed(ranking="0" * 16), "its experts"),
        (changed(ranking=""), "malformed"),
        (changed(selection=[[], [0, 2, 5], [1, 2, 4]]), "its experts"),
        (changed(selection=[[], [0, 2, 5], [-1, 2, 4]]), "malformed"),
        (changed(selection=[[]] * 1025), "malformed"),
        (changed(shard_sha256="a" * 63), "malformed"),
        (changed(shard_sha256="A" * 64), "malformed"),
        (changed(size_bytes=0), "malformed"),
        (changed(size_bytes=1.5), "malformed"),
        (changed(experts=4), "keep 4 of 6"),
        (changed(experts_all=5), "keep 3 of 5"),
        (changed(mass=math.nan), "malformed"),
        (changed(mass=1.01), "malformed"),
        (changed(mass=0.6), "least layer"),
        (changed(least_mass=-0.1), "malformed"),
        (changed(texts={}), "malformed"),
        (changed(texts={"prose": "b" * 64}), "each of its texts"),
        (changed(texts={"prose": "b" * 64, "contracts": "../../etc"}), "malformed"),
        (changed(texts={"prose": "b" * 64, "": "c" * 64}), "malformed"),
        (changed(logits={}), "whose logits"),
        (changed(logits={"prose": {"sha256": "d" * 64}}), "whose logits"),
        (changed(logits={"prose": {"sha256": "d" * 64}, "poems": {"sha256": "e" * 64}}), "whose"),
        (changed(logits={"prose": {"sha256": "../x"}}), "malformed"),
        (changed(logits={"prose": {"sha256": "d" * 64, "node": "n" * 129}}), "malformed"),
        (changed(tokens=0), "malformed"),
        (changed(engine="x" * 201), "malformed"),
        (changed(measured=[]), "each of its texts"),
        (measured(domain="prose"), "each of its texts"),
        (measured(top1=1.001), "figures cannot be"),
        (measured(top1=-0.1), "figures cannot be"),
        (measured(kl=-0.1), "figures cannot be"),
        (measured(perplexity_ratio=0), "figures cannot be"),
        (measured(kl=math.nan), "malformed"),
        (measured(perplexity_ratio="1.03"), "malformed"),
        (certificate.encode(GOOD).replace(b"1.1,", b"1e999,"), "cannot be|malformed"),
    ],
)
def test_what_is_not_believed(text: bytes, why: str) -> None:
    with pytest.raises(CertificateError, match=why):
        certificate.decode(text, key=KEY)


def test_layers_keep_their_experts_in_order_and_equally_many() -> None:
    for selection in (
        ((0, 0, 1), (1, 2, 3)),
        ((2, 0, 5), (1, 2, 3)),
        ((0, 1), (1, 2, 3)),
        ((), ()),
    ):
        key = shard_key(FINGERPRINT, RANKING, selection)
        text = changed(key=key, selection=selection)
        with pytest.raises(CertificateError, match="do not each keep 3"):
            certificate.decode(text, key=key)


def test_what_nobody_would_believe_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    certificate.write(path, GOOD)
    with pytest.raises(CertificateError):
        certificate.write(path, replace(GOOD, mass=math.nan))
    assert certificate.read(path, key=KEY) == GOOD


def test_files_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(CertificateError, match=r"c\.json: No such file"):
        certificate.read(path, key=KEY)
    path.write_bytes(certificate.encode(GOOD)[:-3])
    with pytest.raises(CertificateError, match=r"c\.json: it is malformed"):
        certificate.read(path, key=KEY)
    with pytest.raises(CertificateError, match="directory"):
        certificate.read(tmp_path, key=KEY)


@pytest.mark.parametrize("name", [one.name for one in fields(Certificate) if one.name != "version"])
def test_every_field_is_needed(name: str) -> None:
    told = json.loads(certificate.encode(GOOD))
    del told[name]
    with pytest.raises(CertificateError):
        certificate.decode(json.dumps(told).encode(), key=KEY)


GOOD_TEXT = certificate.encode(GOOD)


@given(some.integers(0, len(GOOD_TEXT) - 1), some.binary(max_size=8), some.integers(0, 8))
def test_mutations_do_not_crash_it(place: int, put: bytes, cut: int) -> None:
    text = GOOD_TEXT[:place] + put + GOOD_TEXT[place + cut :]
    try:
        found = certificate.decode(text, key=KEY)
    except CertificateError:
        return
    assert (found.key, found.fingerprint, found.selection) == (KEY, FINGERPRINT, SELECTION)
    assert all(0 <= one.top1 <= 1 and one.kl >= 0 for one in found.measured)


json_values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=5),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=5), inner),
    max_leaves=8,
)


@given(some.sampled_from([one.name for one in fields(Certificate)]), json_values)
def test_any_value_in_any_field_does_not_crash_it(name: str, value: object) -> None:
    try:
        found = certificate.decode(changed(**{name: value}), key=KEY)
    except CertificateError:
        return
    assert certificate.decode(certificate.encode(found), key=KEY) == found
