"""Sums by pairwise masks: whoever adds the masked arrays of all clients learns their sum, and of any single array nothing.

Bonawitz et al. 2017 (Practical Secure Aggregation, section 4, "masking with one-time pads"), without its recovery from clients that
drop out: where one does, the others begin again with new keys. Every pair of clients i < j agrees on a key that the server cannot
compute; client i adds the numbers it gives, client j subtracts them, modulo 2^32, so that in the sum they are gone.
:class:`Session` is a client's part in it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from undertow.core.errors import UserError

#: With two clients each could take its own counts off the sum and see the other's.
LEAST = 3


def key_pair() -> tuple[bytes, bytes]:
    """Return a new private and public key, 32 bytes each (X25519, RFC 7748)."""
    private = X25519PrivateKey.generate()
    return private.private_bytes_raw(), private.public_key().public_bytes_raw()


def seal(secret: bytes, session: bytes, public: bytes) -> bytes:
    """Return what shows that a client, one who knows the clients' secret, made this public key for this session: HMAC-SHA256."""
    return hmac.new(secret, b"undertow secure sum|" + session + b"|" + public, hashlib.sha256).digest()


@dataclass
class Session:
    """One client's part in the sums of a session: a new key pair, and each exchange of the session answered once and in order.

    Attributes:
        id: the server's name of the session, in hexadecimal.
        private, public: the client's keys.
        asked: the exchange that was answered last; 0 before the first.
    """

    id: str
    private: bytes
    public: bytes
    asked: int = 0

    @classmethod
    def begin(cls, session: str) -> Session:
        """Return the client's part in a session that the server named, with new keys."""
        return cls(session, *key_pair())

    def offer(self, secret: bytes) -> dict[str, str]:
        """Return what the server hands on to the other clients: the public key, and the seal of one who knows the clients'
        secret."""
        return {"public": self.public.hex(), "seal": seal(secret, bytes.fromhex(self.id), self.public).hex()}

    def enter(self, order: Mapping[str, Any], secret: bytes) -> Turn:
        """Begin the next exchange.

        Args:
            order: the server's: ``session``, ``exchange`` from 1, ``place`` of this client, ``keys`` of all clients as (public,
                seal).
            secret: shared by the clients.

        Raises:
            UserError: another session, an exchange out of turn, or keys that :func:`check_keys` refuses.
        """
        number = int(order["exchange"])
        if order["session"] != self.id or number != self.asked + 1:
            # the same mask over other counts would show their difference
            raise UserError(
                f"exchange {number} is out of turn after {self.asked}: each is answered once; the server must begin anew"
            )
        publics, seals = ([bytes.fromhex(pair[part]) for pair in order["keys"]] for part in (0, 1))
        session, place = bytes.fromhex(self.id), int(order["place"])
        check_keys(secret, session, self.public, place, publics, seals)
        self.asked = number
        return Turn(number, place, publics, session, self.private)


@dataclass(frozen=True)
class Turn:
    """One exchange that a client may answer: its number, the client's place, the keys of all clients."""

    number: int
    place: int
    publics: Sequence[bytes]
    session: bytes
    private: bytes

    def masked(self, counts: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Return counts ``[m]`` as they may leave the client."""
        return masked(counts, self.private, self.place, self.publics, self.session, self.number)


def check_sum(array: NDArray[Any]) -> None:
    """Refuse what the server sends as a sum and is none.

    Raises:
        UserError: not uint32 ``[m]``.
    """
    if array.dtype != np.uint32 or array.ndim != 1:
        raise UserError(f"the server sent {array.dtype} of {list(array.shape)} as a sum; it is to send uint32 [m]")


def check_keys(secret: bytes, session: bytes, own: bytes, place: int, publics: Sequence[bytes], seals: Sequence[bytes]) -> None:
    """Refuse keys under which the sum would not hide this client's array.

    Args:
        secret: shared by the clients, unknown to the server.
        session: of this sum.
        own: this client's public key.
        place: where it is among ``publics``.
        publics, seals: of all clients, in one order.

    Raises:
        UserError: fewer than three clients, a key twice, a seal that is wrong, or one's own key elsewhere.
    """
    if len(publics) < LEAST:
        raise UserError(f"{len(publics)} clients are in this sum, at least {LEAST} are needed to hide one's counts; add clients")
    if len(set(publics)) < len(publics) or len(seals) != len(publics):
        raise UserError("the keys of this sum are not one for each client; the server must begin anew")
    if not 0 <= place < len(publics) or publics[place] != own:
        raise UserError("this client's key is not where the server says it is; the server must begin anew")
    for public, mark in zip(publics, seals, strict=True):
        if not hmac.compare_digest(mark, seal(secret, session, public)):
            raise UserError("a key of this sum was not made by a client who knows the shared secret; give all clients the same")


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
        UserError: a public key that is none.
    """
    total = array.astype(np.uint32, copy=True)
    key = X25519PrivateKey.from_private_bytes(private)
    for other, public in enumerate(publics):
        if other == place:
            continue
        try:
            shared = key.exchange(X25519PublicKey.from_public_bytes(public))
        except (ValueError, InvalidKey) as error:
            raise UserError(f"key {other} of this sum is not an X25519 key; the server must begin anew") from error
        info = b"undertow secure sum|%d|%d|%d" % (min(place, other), max(place, other), number)
        stream = _stream(HKDF(SHA256(), 32, session, info).derive(shared), len(total))
        total = total + stream if place < other else total - stream
    return total


def _stream(key: bytes, count: int) -> NDArray[np.uint32]:
    """Return ``count`` numbers that nobody without the key tells from random ones: AES-256 in counter mode, each key used once."""
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(4 * count)), dtype="<u4").astype(np.uint32)
