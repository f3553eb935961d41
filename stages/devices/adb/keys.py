"""This computer's adb key: the one that adb itself uses in ~/.android, or a new one that only its owner may read. Imports errors only; cryptography and adb-shell inside functions."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import UsageError

if TYPE_CHECKING:
    from adb_shell.auth.sign_cryptography import CryptographySigner


def key_paths() -> list[Path]:
    """Private keys to offer, in adb's order: those of $ADB_VENDOR_KEYS (files, separated as in PATH), then ~/.android/adbkey, which is made when it is missing."""
    own = Path.home() / ".android" / "adbkey"
    if not own.exists():
        make_key(own)
    vendor = [Path(text) for text in os.environ.get("ADB_VENDOR_KEYS", "").split(os.pathsep) if text]
    return [*(path for path in vendor if path.is_file()), own]


def make_key(path: Path) -> None:
    """A new RSA key at ``path`` (mode 0600) and ``path``.pub. A key that another process makes at the same time wins, and is kept. UsageError when it can't be written."""
    from adb_shell.auth.keygen import keygen

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent))  # mode 0700: nobody else can read the key before its own mode is set
        try:
            keygen(str(folder / "key"))
            os.chmod(folder / "key", 0o600)
            try:
                os.link(folder / "key", path)  # unlike a rename, never over a key that phones already trust
            except FileExistsError:
                return
            os.replace(folder / "key.pub", public(path))
        finally:
            shutil.rmtree(folder)
    except OSError as error:
        raise UsageError(f"Can't make the adb key {path}: {error.strerror}.", "Check permissions of the folder, or make the key with 'adb keygen'.") from error


def public(path: Path) -> Path:
    """The file that holds the public half of the key at ``path``."""
    return path.with_name(f"{path.name}.pub")


def signers() -> list[CryptographySigner]:
    """What adb-shell signs a phone's challenge with, one per key. UsageError for a file that isn't a private key, or may not be read."""
    return [_signer(path) for path in key_paths()]


def _signer(path: Path) -> CryptographySigner:
    from adb_shell.auth.keygen import write_public_keyfile
    from adb_shell.auth.sign_cryptography import CryptographySigner

    try:
        if not public(path).exists():  # adb needs only the private half, so a copied key may lack this one
            write_public_keyfile(str(path), str(public(path)))
        return CryptographySigner(str(path))
    except OSError as error:
        raise UsageError(f"Can't read the adb key {path}: {error.strerror}.", "Check its owner and permissions (it should be yours, mode 0600).") from error
    except (ValueError, TypeError) as error:  # TypeError: encrypted
        raise UsageError(f"{path} is not a private key that adb could use.", "Move it away: a new one is made, and the phone asks once more.") from error
