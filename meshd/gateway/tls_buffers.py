"""How much memory each TLS connection takes.

asyncio gives every one a read buffer of 256 KiB and writes it full of zeros, so that all of it is
resident; a thousand clients that only follow a table would cost 300 MiB. A TLS record has at most
16 KiB (RFC 8446, 5.1); a larger one only saves a few calls.
"""

from __future__ import annotations

from asyncio import sslproto

_BUFFER_BYTES = 16 * 1024


def small_tls_buffers() -> None:
    """From now on in this process. asyncio has no other place to say so than this attribute."""
    sslproto.SSLProtocol.max_size = _BUFFER_BYTES
