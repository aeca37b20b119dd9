from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from meshd.engine.apt import first_error, inherited, parse_simulation
from meshd.engine.install import backend_packages, gpu_nodes
from meshd.engine.sources import Source, debian_mirrors, parse_sources, render_source

DEB822 = """\
Types: deb deb-src
# a comment within
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: https://vendor.example/apt
Suites: stable
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
"""
ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main contrib # why
deb-src http://mirror.example/debian trixie main
deb http://mirror.example/debian-security trixie-security main
"""


def test_deb822_and_one_line_sources_are_read() -> None:
    sources = parse_sources(DEB822, deb822=True)
    assert [(source.uri, source.suite) for source in sources] == [
        ("http://mirror.example/debian", "bookworm"),
        ("http://mirror.example/debian", "bookworm-updates"),
        ("https://vendor.example/apt", "stable"),
    ]
    assert "BEGIN PGP" in sources[-1].signed_by
    assert parse_sources(ONE_LINE, deb822=False) == (
        Source("http://mirror.example/debian", "trixie", ("main", "contrib"), "/k.gpg"),
        Source("http://mirror.example/debian-security", "trixie-security", ("main",)),
    )


def test_debian_comes_before_a_vendor_and_each_mirror_once() -> None:
    vendor, *_ = (s for s in parse_sources(DEB822, deb822=True) if "vendor" in s.uri)
    mirrors = debian_mirrors((vendor, *parse_sources(DEB822, deb822=True)))
    assert [mirror.uri for mirror in mirrors] == [
        "http://mirror.example/debian",
        "https://vendor.example/apt",
    ]


def test_security_and_updates_archives_are_no_mirrors() -> None:
    found = debian_mirrors(parse_sources(ONE_LINE, deb822=False))
    assert [mirror.uri for mirror in found] == ["http://mirror.example/debian"]


def test_a_rendered_source_reads_back() -> None:
    (source,) = debian_mirrors(parse_sources(ONE_LINE, deb822=False))
    (back,) = parse_sources(render_source(source, suite="forky", keyring="/d.gpg"), deb822=True)
    assert (back.uri, back.suite, back.signed_by) == (source.uri, "forky", "/k.gpg")
    bare = Source("http://m.example/debian", "sid", ("main",))
    assert "Signed-By: /d.gpg" in render_source(bare, suite="forky", keyring="/d.gpg")


def test_trust_without_a_signature_is_not_carried_over() -> None:
    text = "deb [trusted=yes] http://m.example/debian sid main\n"
    (source,) = parse_sources(text, deb822=False)
    assert "rusted" not in render_source(source, suite="forky", keyring="")


@given(st.text(), st.booleans())
def test_no_text_crashes_the_reader(text: str, deb822: bool) -> None:
    for source in debian_mirrors(parse_sources(text, deb822=deb822)):
        assert source.uri


def test_simulated_installation() -> None:
    text = (
        "Reading package lists...\n"
        "Inst gcc-16-base (16.2.0-3 Debian:testing [amd64])\n"
        "Inst libllama0 (1:0.7.0+dfsg-2 Debian:testing [amd64])\n"
        "Inst tzdata (2026b-1 Debian:testing [all]) []\n"
        "Conf gcc-16-base (16.2.0-3 Debian:testing [amd64])\n"
    )
    assert [package.file_name for package in parse_simulation(text)] == [
        "gcc-16-base_16.2.0-3_amd64.deb",
        "libllama0_1%3a0.7.0+dfsg-2_amd64.deb",
        "tzdata_2026b-1_all.deb",
    ]


def test_apts_own_words_are_found() -> None:
    assert first_error("W: old\nE: The repository is not signed.\n") == (
        "The repository is not signed."
    )
    assert first_error("") == "no message"


def test_only_how_to_reach_a_mirror_is_taken_over_from_the_host() -> None:
    kept = ('Acquire::http::Proxy "http://p.example:3142";', 'Acquire::ForceIPv4 "true";')
    dropped = (
        'Acquire::AllowInsecureRepositories "1";',
        'Acquire::Languages:: "de";',
        'DPkg::Post-Invoke:: "rm -rf /var/cache/apt/archives";',
        'Acquire::http "";',
        'Dir::Etc "etc/apt";',
    )
    assert inherited("\n".join((*dropped, *kept))) == kept


def test_a_gpu_is_seen_with_a_render_node_and_without(tmp_path: Path) -> None:
    (tmp_path / "dri").mkdir()
    for name in ("nvidiactl", "nvidia-uvm", "dri/card0"):
        (tmp_path / name).touch()
    assert gpu_nodes(tmp_path) == ()
    # An H200 of a virtual machine: no /dev/dri, and Vulkan works all the same.
    (tmp_path / "nvidia0").touch()
    assert gpu_nodes(tmp_path) == (str(tmp_path / "nvidia0"),)
    (tmp_path / "dri/renderD128").touch()
    assert len(gpu_nodes(tmp_path)) == 2


def test_vulkan_only_where_there_is_a_gpu() -> None:
    assert backend_packages(()) == ()
    assert backend_packages(("/dev/dri/renderD128",)) == ("libggml0-backend-vulkan",)
