"""Keyed draws: keys, derivation, and exact tables of integer noise.

Noise is a function of a secret and of the question. The same question gets the same answer, so repeating it teaches
nothing; a different question, or any other parameter, gets unrelated noise.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from hardening.errors import ConfigError
from hardening.kernels import schedule

#: Ciphers a key may name; a new key gets the first. The cipher belongs to the key, so every replica draws the same
#: stream, by the processor's instructions for it or without.
CIPHERS = ("aes-128-ctr", "chacha20")
SECRET_BYTES = 32
_PREFIX = "hardening-key:1"


@dataclass(frozen=True, eq=False, repr=False)
class Key:
    """The secret behind all noise.

    Attributes:
        epoch: whole number from 1 on; a new epoch draws new noise for every input.
        cipher: one of `CIPHERS`.
        secret: 32 bytes. Never shown by repr, never pickled.
    """

    epoch: int
    cipher: str
    secret: bytes

    def __post_init__(self) -> None:
        if isinstance(self.epoch, bool) or not isinstance(self.epoch, int) or not 1 <= self.epoch < 2**31:
            raise ConfigError("key.epoch", f"must be a whole number from 1 on, not {self.epoch!r}")
        if self.cipher not in CIPHERS:
            raise ConfigError("key.cipher", f"unknown cipher {self.cipher!r}; known: {', '.join(CIPHERS)}")
        if not isinstance(self.secret, bytes) or len(self.secret) != SECRET_BYTES:
            raise ConfigError("key.secret", f"must be {SECRET_BYTES} bytes")

    def __repr__(self) -> str:
        return f"Key(epoch={self.epoch}, cipher={self.cipher!r}, secret=<hidden>)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return NotImplemented
        same = (self.epoch, self.cipher) == (other.epoch, other.cipher)
        return hmac.compare_digest(self.secret, other.secret) and same

    def __hash__(self) -> int:
        return hash((self.epoch, self.cipher))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Key is not pickled: pass the reference to it, such as 'file:hardening.key'")

    def format(self) -> str:
        """One line of text, for a file or an environment variable."""
        return f"{_PREFIX}:{self.epoch}:{self.cipher}:{base64.urlsafe_b64encode(self.secret).decode()}"

    @classmethod
    def parse(cls, text: str) -> Key:
        """Read `format`'s line. Raises ConfigError, which never quotes the secret."""
        parts = text.strip().split(":")
        if len(parts) != 5 or ":".join(parts[:2]) != _PREFIX:
            raise ConfigError("key", f"not a key: expected one line '{_PREFIX}:EPOCH:CIPHER:SECRET'")
        if not parts[2].isascii() or not parts[2].isdigit():
            raise ConfigError("key.epoch", "must be a whole number from 1 on")
        try:
            secret = base64.b64decode(parts[4].encode(), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise ConfigError("key.secret", "is not base64url text") from None
        return cls(int(parts[2]), parts[3], secret)


def _encode(value: bytes | str | int | float) -> bytes:
    """Unambiguous bytes of one item: a type tag, a length, the content."""
    if isinstance(value, bytes):
        tag, body = b"b", value
    elif isinstance(value, str):
        tag, body = b"s", value.encode()
    elif isinstance(value, int):
        tag, body = b"i", str(value).encode()
    else:
        tag, body = b"f", value.hex().encode()
    return tag + len(body).to_bytes(8, "little") + body


def derive(key: Key, purpose: str, *context: bytes | str | int | float) -> bytes:
    """32 bytes for one purpose: keyed BLAKE2b (RFC 7693) over epoch, cipher, purpose and context."""
    digest = hashlib.blake2b(key=key.secret, person=b"hardening.v1", digest_size=SECRET_BYTES)
    for item in (key.epoch, key.cipher, purpose, *context):
        digest.update(_encode(item))
    return digest.digest()


LawKind = Literal["gaussian", "laplace", "staircase"]


@dataclass(frozen=True, slots=True)
class Law:
    """Integer noise: discrete Gaussian, discrete Laplace or the discrete staircase.

    ``gaussian``: P(x) proportional to exp(-x^2 / (2 scale^2)) (Canonne, Kamath & Steinke 2020).
    ``laplace``: P(x) = tanh(1 / (2 scale)) exp(-|x| / scale).
    ``staircase``: P(x) proportional to exp(-level(|x|) period / scale), where level(x) = x // period, and one more from
    `flat` on in each period (Geng & Viswanath 2014). With a period of one it is the discrete Laplace.

    Attributes:
        scale: in steps of the grid, exact.
        period, flat: of the staircase, in steps; 1 <= flat <= period.
    """

    kind: LawKind
    scale: Fraction
    period: int = 1
    flat: int = 1


@dataclass(frozen=True, slots=True)
class NoiseTable:
    """Alias table of a law (Walker 1977), exact in units of 2**-64.

    A 64-bit word r picks slot s = r >> (64 - bits); the value is s - offset if (r << bits) mod 2**64 < threshold[s],
    else alias[s].

    Attributes:
        threshold: uint64 ``(2**bits,)``.
        alias: int32 ``(2**bits,)``.
        tv_bound: total-variation distance to the ideal law is at most this: every weight is within one unit of 2**-64
            of its ideal value except the mode, which absorbs the sum of those errors, and the tail cut off is below
            2**-64.
    """

    bits: int
    offset: int
    threshold: NDArray[np.uint64]
    alias: NDArray[np.int32]
    tv_bound: float


#: Octaves, in steps of the grid, of a scale on its own grid and of one on the finest: what a table has room for.
_OCTAVES: Mapping[LawKind, tuple[int, int]] = {"gaussian": (8, 11), "laplace": (6, 9), "staircase": (6, 8)}


def grid_exponent(kind: LawKind, scale: float) -> int:
    """b such that the grid has steps of 2**-b: scale / step is in [128, 256) for gaussian, [32, 64) for the others.

    Fine enough that rounding the clean score to the grid costs little (step * sqrt(K) in L2), coarse enough that the
    table stays in a core's cache. Raises ValueError.
    """
    if not (math.isfinite(scale) and 2.0**-40 <= scale <= 2.0**40):
        raise ValueError(f"the noise scale must be between 2**-40 and 2**40, not {scale!r}")
    return _OCTAVES[kind][0] - math.frexp(scale)[1]


def grid_exponents(kind: LawKind, scale: float) -> range:
    """All b that a grid of steps 2**-b may have for this scale: from scale / step in [1, 2) on. Raises ValueError."""
    own = grid_exponent(kind, scale)
    first, finest = _OCTAVES[kind]
    return range(own - first + 1, own + finest - first + 1)


def _ratios(law: Law, scale: Decimal) -> Iterator[Decimal]:
    """P(x) / P(0) for x = 0, 1, 2, ..."""
    value, x = Decimal(1), 0
    step = (-1 / (2 * scale * scale)).exp() if law.kind == "gaussian" else (-law.period / scale).exp()
    square = step * step
    while True:
        yield value
        x += 1
        if law.kind == "gaussian":
            value, step = value * step, step * square
        elif law.kind == "laplace" or x % law.period == law.flat % law.period:
            value *= step


def _weights(law: Law) -> tuple[list[int], int]:
    """Integers proportional to P(0), P(1), ..., in units of 2**-64, summing over both signs to exactly 2**64."""
    with localcontext() as context:
        context.prec = 70
        scale = Decimal(law.scale.numerator) / Decimal(law.scale.denominator)
        cut = Decimal(2) ** -80
        ratios = list(itertools.takewhile(lambda ratio: ratio > cut, _ratios(law, scale)))
        total = 2 * sum(ratios) - 1
        weights = [int((r / total * 2**64).to_integral_value()) for r in ratios]
    while weights[-1] == 0:
        weights.pop()
    weights[0] += 2**64 - (2 * sum(weights) - weights[0])
    return weights, len(weights) - 1


@functools.lru_cache(maxsize=64)
def noise_table(law: Law) -> NoiseTable:
    """The exact alias table of a law; built with integers only."""
    weights, reach = _weights(law)
    bits = max(1, (2 * reach + 1 - 1).bit_length())
    slots = 1 << bits
    room = 1 << (64 - bits)
    mass = [weights[abs(i - reach)] if i <= 2 * reach else 0 for i in range(slots)]
    own, alias = [room] * slots, [i - reach for i in range(slots)]
    small = [i for i in range(slots) if mass[i] < room]
    large = [i for i in range(slots) if mass[i] > room]
    while small:
        s, big = small.pop(), large[-1]
        own[s], alias[s] = mass[s], big - reach
        mass[big] -= room - mass[s]
        if mass[big] <= room:
            large.pop()
            if mass[big] < room:
                small.append(big)
    threshold = np.array([min(o << bits, 2**64 - 1) for o in own], np.uint64)
    table = NoiseTable(bits, reach, threshold, np.array(alias, np.int32), (2 * reach + 3) * 2.0**-64)
    table.threshold.flags.writeable = False
    table.alias.flags.writeable = False
    return table


def packed(table: NoiseTable) -> NDArray[np.uint64]:
    """The table as kernels read it, one word a slot: in the low `bits` bits the other slot, above it the threshold.

    A slot that keeps all of its words names itself as the other one, so that its threshold does not matter.
    """
    other = (table.alias.astype(np.int64) + table.offset).astype(np.uint64)
    return (table.threshold >> np.uint64(table.bits) << np.uint64(table.bits)) | other


def table_weights(table: NoiseTable) -> dict[int, int]:
    """The law that a table draws from, read back: value -> weight in units of 2**-64."""
    room = 1 << (64 - table.bits)
    law: dict[int, int] = {}
    for slot, (threshold, alias) in enumerate(zip(table.threshold.tolist(), table.alias.tolist(), strict=True)):
        own = room if alias == slot - table.offset else threshold >> table.bits
        for value, weight in ((slot - table.offset, own), (alias, room - own)):
            law[value] = law.get(value, 0) + weight
    return {value: weight for value, weight in law.items() if weight}


def round_keys(cipher: str, secret: bytes) -> NDArray[np.uint32] | NDArray[np.uint64]:
    """What the cipher's kernel is given of 32 bytes: them for ChaCha20, round keys of the first 16 for AES-128."""
    if cipher == "chacha20":
        return np.frombuffer(secret, "<u4").astype(np.uint32)
    return schedule.expand(secret[: schedule.SECRET])


def reference_stream(cipher: str, secret: bytes, nonce: bytes, unit: int, words: int) -> NDArray[np.uint64]:
    """Keystream from its 64-byte `unit` on as little-endian 64-bit words, by the `cryptography` package.

    ``chacha20`` (RFC 8439) counts units, ``aes-128-ctr`` (NIST SP 800-38A) the four blocks of 16 bytes in each,
    big-endian behind the nonce.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

    if cipher == "chacha20":
        stream: CipherContext = Cipher(
            algorithms.ChaCha20(secret, unit.to_bytes(4, "little") + nonce), None
        ).encryptor()
    else:
        counter = modes.CTR(nonce + (4 * unit).to_bytes(4, "big"))
        stream = Cipher(algorithms.AES(secret[: schedule.SECRET]), counter).encryptor()
    return np.frombuffer(stream.update(bytes(8 * words)), "<u8")


def reference_noise(table: NoiseTable, raw: NDArray[np.uint64]) -> NDArray[np.int64]:
    """What the kernel draws from 64-bit words, in plain numpy."""
    slot = (raw >> np.uint64(64 - table.bits)).astype(np.int64)
    keep = (raw << np.uint64(table.bits)) < table.threshold[slot]
    return np.where(keep, slot - table.offset, table.alias[slot].astype(np.int64))


def reference_nonce(row: list[int], key: list[int]) -> bytes:
    """96-bit nonce of one canonical input row, as `kernels.tag` computes it, in Python's integers.

    Args:
        row: 64-bit words, a multiple of eight of them.
        key: 64-bit words, 23 more than the row has.
    """
    low = 2**32 - 1
    sums = [  # NH, in four passes
        sum(((x + k) & low) * (((x >> 32) + (k >> 32)) & low) for x, k in zip(row, key[shift:], strict=False)) % 2**64
        for shift in (20, 21, 22, 23)
    ]
    wide = [low | high << 64 for low, high in zip(key[0:20:2], key[1:20:2], strict=True)]
    first = (wide[0] + sum(c * v for c, v in zip(wide[1:5], sums, strict=True))) % 2**128
    second = (wide[5] + sum(c * v for c, v in zip(wide[6:], sums, strict=True))) % 2**128
    return (first >> 64).to_bytes(8, "little") + (second >> 96).to_bytes(4, "little")
