"""TLS files, read as the server will read them, so that a wrong one is named before a model is loaded."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from tilewise.errors import InvalidConfig

# OpenSSL looks for the certificate by the kind of its key: to an RSA key, one of another kind is none at all.
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


def check_tls(*, key: str, certificate: str, authorities: str | None, ciphers: str | None) -> None:
    """Raises InvalidConfig, naming option, file and remedy."""
    with _reading("ssl_certfile", certificate, "certificate", "CERTIFICATE"):
        _context().load_verify_locations(certificate)
    context = _context()
    with _reading("ssl_keyfile", key, "private key", "PRIVATE KEY"):
        try:
            context.load_cert_chain(certificate, key, lambda: _refuse_encrypted(key))
        except ssl.SSLError as error:
            if error.reason not in _MISMATCHES:
                raise
            raise InvalidConfig(
                f"ssl_keyfile: {key} is not the key of the first certificate in {certificate}: name the two that were "
                "made together, the server's own certificate before those of its authorities."
            ) from None
    if authorities is not None:
        with _reading("ssl_ca_certs", authorities, "certificate", "CERTIFICATE"):
            context.load_verify_locations(authorities)
    try:
        context.set_ciphers(ciphers or "DEFAULT")
    except ssl.SSLError:
        raise InvalidConfig(
            f"ssl_ciphers={ciphers!r} names no cipher of this OpenSSL: `openssl ciphers` lists them."
        ) from None


def _context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def _refuse_encrypted(key: str) -> str:
    """OpenSSL would ask at the terminal, which a server may not have."""
    raise InvalidConfig(
        f"ssl_keyfile: {key} is encrypted, and nobody can be asked for its passphrase: write it without, with "
        f"`openssl pkey -in {key} -out NEW_FILE`, readable by the server alone."
    )


@contextmanager
def _reading(option: str, path: str, what: str, mark: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError:
        raise InvalidConfig(
            f"{option}: {path} holds no {what} in PEM form: name the file with a line -----BEGIN {mark}-----."
        ) from None
    except OSError as error:
        raise InvalidConfig(f"{option}: {path} cannot be read ({error.strerror}): name a file that can.") from None
