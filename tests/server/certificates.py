"""Keys and certificates for tests, made by OpenSSL's command: an authority, and whom it vouches for."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: str
    key: str


@dataclass(frozen=True)
class Authority:
    """One that vouches for names, whose certificate alone a client has to trust."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> Authority:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")
        authority = cls(folder)
        authority._issue("authority", "Tests", "basicConstraints=critical,CA:TRUE")
        return authority

    @property
    def certificate(self) -> str:
        return self._pair("authority").certificate

    def pair(self, name: str, address: str = "127.0.0.1") -> Pair:
        """For the server at this address, or for a client, of whom nobody asks an address."""
        signed = ("-CA", self.certificate, "-CAkey", self._pair("authority").key)
        return self._issue(name, name, f"subjectAltName=IP:{address}", *signed)

    def _pair(self, name: str) -> Pair:
        return Pair(str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key"))

    def _issue(self, name: str, subject: str, extension: str, *signed: str) -> Pair:
        pair = self._pair(name)
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", pair.key)
        about = ("-subj", f"/CN={subject}", "-addext", extension, "-days", "2", "-out", pair.certificate)
        openssl("req", "-x509", *key, *about, *signed)
        return pair


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)
