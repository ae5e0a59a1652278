"""Sums by pairwise masks: whoever adds the masked arrays of all clients learns their sum, and of any single array nothing.

Bonawitz et al. 2017 (Practical Secure Aggregation, section 4, "masking with one-time pads"), without its recovery from clients that drop
out: where one does, the others begin again with new keys. Every pair of clients i < j agrees on a key that the server cannot compute;
client i adds the numbers it gives, client j subtracts them, modulo 2^32, so that in the sum they are gone.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

import numpy as np
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

#: With two clients each could take its own counts off the sum and see the other's.
LEAST = 3


def key_pair() -> tuple[bytes, bytes]:
    """Return a new private and public key, 32 bytes each (X25519, RFC 7748)."""
    private = X25519PrivateKey.generate()
    return private.private_bytes_raw(), private.public_key().public_bytes_raw()


def seal(secret: bytes, session: bytes, public: bytes) -> bytes:
    """Return what shows that a client, one who knows the clients' secret, made this public key for this session: HMAC-SHA256."""
    return hmac.new(secret, b"undertow secure sum|" + session + b"|" + public, hashlib.sha256).digest()


def check_keys(secret: bytes, session: bytes, own: bytes, place: int, publics: Sequence[bytes], seals: Sequence[bytes]) -> None:
    """Refuse keys under which the sum would not hide this client's array.

    Args:
        secret: shared by the clients, unknown to the server.
        session: of this sum.
        own: this client's public key.
        place: where it is among ``publics``.
        publics, seals: of all clients, in one order.

    Raises:
        ValueError: fewer than three clients, a key twice, a seal that is wrong, or one's own key elsewhere.
    """
    if len(publics) < LEAST:
        raise ValueError(f"{len(publics)} clients are in this sum, at least {LEAST} are needed to hide one's counts")
    if len(set(publics)) < len(publics) or len(seals) != len(publics):
        raise ValueError("the keys of this sum are not one for each client")
    if not 0 <= place < len(publics) or publics[place] != own:
        raise ValueError("this client's key is not where the server says it is")
    for public, mark in zip(publics, seals, strict=True):
        if not hmac.compare_digest(mark, seal(secret, session, public)):
            raise ValueError("a key of this sum was not made by a client who knows the shared secret; give all clients the same")


def masked(
    array: NDArray[np.uint32], private: bytes, place: int, publics: Sequence[bytes], session: bytes, number: int
) -> NDArray[np.uint32]:
    """Return an array with the masks of all pairs that this client is in, modulo 2^32.

    A mask must hide one array only: a client answers each ``number`` of a session once.

    Args:
        array: ``[m]``.
        private: this client's key.
        place: where it is among ``publics``.
        publics: the keys of all clients.
        session: of this sum.
        number: of the array in the session.

    Raises:
        ValueError: a public key that is none.
    """
    total = array.astype(np.uint32, copy=True)
    key = X25519PrivateKey.from_private_bytes(private)
    for other, public in enumerate(publics):
        if other == place:
            continue
        try:
            shared = key.exchange(X25519PublicKey.from_public_bytes(public))
        except (ValueError, InvalidKey) as error:
            raise ValueError(f"key {other} of this sum is none") from error
        info = b"undertow secure sum|%d|%d|%d" % (min(place, other), max(place, other), number)
        stream = _stream(HKDF(SHA256(), 32, session, info).derive(shared), len(total))
        total = total + stream if place < other else total - stream
    return total


def _stream(key: bytes, count: int) -> NDArray[np.uint32]:
    """Return ``count`` numbers that nobody without the key tells from random ones: AES-256 in counter mode, each key used once."""
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(4 * count)), dtype="<u4").astype(np.uint32)
