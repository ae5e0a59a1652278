"""Certificates for TLS and keys of nodes, in the formats that Flower reads. What exists is never overwritten.

``python -m undertow.federate.keys CONNECTION PORT KEY.pub...`` registers keys with a SuperLink of this machine, once it listens,
all in one process.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from undertow.core.errors import UserError
from undertow.core.files import fresh
from undertow.federate.processes import wait_for_port

#: For how long certificates are good.
_DAYS = 825
CERTIFICATES = ("ca.crt", "server.pem", "server.key")


def make_certificates(folder: Path, host: str) -> None:
    """Write ``ca.crt``, ``server.pem`` and ``server.key`` (mode 0600), unless they are there.

    The server's certificate is good for ``host``, localhost and 127.0.0.1. The authority's own key is not kept: nobody, not even
    this machine, can make another certificate that the nodes trust.

    Args:
        folder: where to.
        host: name or address by which nodes reach the server.

    Raises:
        UserError: some of the files are there, or they are for another host or no longer good.
    """
    there = [name for name in CERTIFICATES if (folder / name).exists()]
    if there:
        if len(there) < len(CERTIFICATES):
            raise UserError(f"{folder} has {', '.join(there)} alone of {', '.join(CERTIFICATES)}; give another --out")
        _check(folder / "server.pem", host)
        return
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Undertow federation")])
    ca = (
        _certificate(issuer, issuer, authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA384())
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    names = dict.fromkeys([_name("localhost"), _name("127.0.0.1"), _name(host)])
    own = (
        _certificate(subject, issuer, server)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA384())
    )
    key = server.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    write_new(folder / "server.key", key, 0o600)
    write_new(folder / "server.pem", own.public_bytes(serialization.Encoding.PEM))
    write_new(folder / "ca.crt", ca.public_bytes(serialization.Encoding.PEM))


def make_node_key(folder: Path) -> None:
    """Write an ECDSA P-384 key pair as ``key`` (mode 0600) and ``key.pub`` in OpenSSH's format, unless it is there.

    Raises:
        UserError: ``key.pub`` alone is there, or the key is damaged.
    """
    if (folder / "key").exists():
        key = read_key(folder / "key")
    elif (folder / "key.pub").exists():
        raise UserError(f"{folder} has key.pub without key; give another --out")
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
        write_new(folder / "key", private, 0o600)
    if not (folder / "key.pub").exists():
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        write_new(folder / "key.pub", public + b"\n")


def read_key(path: Path) -> serialization.SSHPrivateKeyTypes:
    """Return a private key in OpenSSH's format; :class:`UserError` where it cannot be read."""
    try:
        return serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(
            f"{path} cannot be read as a key ({' '.join(str(error).split())}); copy it again, or give another --out"
        ) from error


def write_new(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file that is not there yet, whole or not at all, never readable by others for a moment where ``mode`` forbids it.

    Raises:
        FileExistsError: it is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with fresh(path) as new:
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(new, path)
        new.unlink()


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks of machines differ
        .not_valid_after(now + timedelta(days=_DAYS))
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _check(path: Path, host: str) -> None:
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise UserError(f"{path} cannot be read as a certificate ({error}); give another --out") from error
    if _name(host) not in list(names):
        raise UserError(f"{path} is not for the host {host}; give another --out, or the --host it was made for")
    now = datetime.now(UTC)
    if now > found.not_valid_after_utc:
        raise UserError(f"{path} was good until {found.not_valid_after_utc:%Y-%m-%d}; give another --out")
    if now < found.not_valid_before_utc:
        raise UserError(
            f"{path} is good from {found.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on, and the clock says {now:%Y-%m-%d %H:%M}; "
            "set the clock, or give another --out"
        )


def main() -> None:
    """Call ``flwr supernode register`` for each key."""
    from flwr.cli.app import app

    connection, port, *keys = sys.argv[1:]
    wait_for_port(int(port), 60)
    for key in keys:
        app(["supernode", "register", key, connection], standalone_mode=False)


if __name__ == "__main__":
    main()
