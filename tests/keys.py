"""A key that is the same in every run: noise that is keyed is the same then too, and no test fails by chance."""

from __future__ import annotations

from pathlib import Path

from hardening.config import KeySource
from hardening.noise import CIPHERS, SECRET_BYTES, Key

KEY = Key(1, CIPHERS[0], bytes(range(SECRET_BYTES)))


def fixed_key(root: Path, name: str = "hardening.key") -> KeySource:
    """Where policies under `root` find `KEY`, also those that would have one made; a key that lies there stays."""
    file = root / name
    if not file.exists():
        file.touch(0o600)
        file.write_text(KEY.format())
    return KeySource(f"file:{name}")
