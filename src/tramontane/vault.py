"""Secrets at rest: what the database keeps of them can be read with a key that it never sees."""

import base64
import hashlib
import hmac
import os
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from tramontane.errors import ConfigurationError, SecretsLocked
from tramontane.settings import Settings

_FILE: Final = "encryption.key"
_NO_KEY: Final = (
    "secrets in a database that servers may share need a key that they share: set TRAMONTANE_ENCRYPTION_KEY to the "
    "same value for each (openssl rand -base64 32)"
)
#: Opened secrets are kept, since every delivery needs some.
_KEPT: Final = 1000


class Vault:
    """Seals with the first key and opens with any of them, so that a key can be followed by another.

    keys: 32 bytes each, as URL-safe base64. Without any, nothing can be sealed or opened.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None
        self._keys = tuple(base64.urlsafe_b64decode(key) for key in keys)
        self._opened: OrderedDict[bytes, str] = OrderedDict()
        #: Names of the keys, fit to be shown; that of the sealing one first.
        self.fingerprints = tuple(hashlib.sha256(b"tramontane key " + key.encode()).hexdigest()[:16] for key in keys)

    def seal(self, text: str) -> bytes:
        """Encrypt and sign. Raises SecretsLocked when there is no key."""
        if self._fernet is None:
            raise SecretsLocked(_NO_KEY)
        return self._fernet.encrypt(text.encode())

    def open(self, sealed: bytes) -> str:
        """What was sealed. Raises SecretsLocked when that was done with another key, or there is none."""
        if self._fernet is None:
            raise SecretsLocked(_NO_KEY)
        if (known := self._opened.get(sealed)) is not None:
            return known
        try:
            text = self._fernet.decrypt(sealed).decode()
        except InvalidToken:
            raise SecretsLocked(
                "a secret in the database was encrypted with another key: add that to TRAMONTANE_ENCRYPTION_KEY"
            ) from None
        self._opened[sealed] = text
        if len(self._opened) > _KEPT:
            self._opened.popitem(last=False)
        return text

    def derive(self, purpose: str) -> tuple[bytes, ...]:
        """Keys for another purpose, one of each of ours, that of the sealing one first. Raises SecretsLocked."""
        if not self._keys:
            raise SecretsLocked(_NO_KEY)
        return tuple(hmac.digest(key, b"tramontane " + purpose.encode(), "sha256") for key in self._keys)


def open_vault(settings: Settings) -> Vault:
    """The vault of the settings' keys; for the embedded database, else, of a key made in the data directory once.

    Raises ConfigurationError when that cannot be read or written.
    """
    if settings.encryption_keys or settings.database_url:
        return Vault(settings.encryption_keys)
    return Vault([_key_of(settings.data_dir)])


def _key_of(directory: Path) -> str:
    path = directory / _FILE
    try:
        if not path.exists():
            _make(path)
        key = path.read_text("ascii").strip()
        if len(base64.urlsafe_b64decode(key)) == 32:
            return key
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be used: {error.strerror}") from None
    except ValueError:
        pass
    raise ConfigurationError(f"{path} holds no key: put back the one that was there, or the secrets are lost")


def _make(path: Path) -> None:
    """Write a new key, whole or not at all; of several processes that do so at once, one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent)  # which only its owner may read
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.urlsafe_b64encode(os.urandom(32)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)
