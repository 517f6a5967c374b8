"""The ciphers behind noise: known answers, an independent implementation, and one form against the other."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit, uint32
from numba.core.registry import cpu_target
from numpy.typing import NDArray

from hardening.kernels import aes, chacha20, memory, prf
from hardening.kernels.schedule import expand, spread, substitute, together
from hardening.noise import CIPHERS, SECRET_BYTES, reference_stream, round_keys

#: What this machine can run of the forms of AES.
BEST = aes.best(cpu_target.target_context)
FORMS = [("sliced", 128), ("sliced", 256), ("sliced", 512), *((BEST[0], w) for w in (128, 256, 512) if w <= BEST[1])]
MODULES = {"aes-128-ctr": aes, "chacha20": chacha20}


@functools.cache
def streams(cipher: str) -> Any:
    """Of one chunk: the first row's stream, and those of eight rows."""
    module = MODULES[cipher]
    along, across = module.along, module.across

    @njit
    def both(key: Any, nonces: Any, unit: int, vectors: int, one: Any, eight: Any) -> None:
        along(key, nonces, unit, vectors, one)
        across(key, nonces, unit, vectors, eight)

    return both


@functools.cache
def encrypt(form: str, bits: int) -> Any:
    encrypt_blocks = aes.encrypt_with((form, bits))
    count, undo = aes.count_along, memory.store

    @njit
    def one(keys: Any, nonces: Any, unit: int, out: Any) -> None:
        x = encrypt_blocks(keys, count(nonces, uint32(unit)))
        for i in range(8):
            undo(out, i, x[i])

    return one


def nonce_words(nonces: list[bytes], units: list[int]) -> NDArray[np.uint32]:
    """Nonces and units of eight rows as `prf` wants them."""
    words = np.array([np.frombuffer(n, "<u4") for n in nonces], np.uint32)
    return np.concatenate([words.T.ravel(), np.array(units, np.uint32)])


def aes_stream(form: tuple[str, int], secret: bytes, nonce: bytes, unit: int) -> bytes:
    out = np.zeros(64, np.uint64)
    encrypt(*form)(expand(secret), nonce_words([nonce] * 8, [unit] * 8), 0, out)
    return out.tobytes()


def test_key_expansion() -> None:
    """FIPS 197, appendix A.1, and the S-box's corners from figure 7."""
    keys = expand(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")).tobytes()
    assert keys[16:32].hex() == "a0fafe1788542cb123a339392a6c7605"
    assert keys[-16:].hex() == "d014f9a8c9ee2589e13f0cc8b6630ca6"
    boxed = b"".join(together(substitute(spread(bytes(range(x, x + 4))))) for x in range(0, 256, 4))
    assert [boxed[x] for x in (0x00, 0x01, 0x53, 0x9A, 0xFF)] == [0x63, 0x7C, 0xED, 0xB8, 0x16]
    assert sorted(boxed) == list(range(256))
    with pytest.raises(ValueError, match="16 bytes, not 15"):
        expand(bytes(15))


@pytest.mark.parametrize("form", FORMS)
def test_aes_known_answers(form: tuple[str, int]) -> None:
    """FIPS 197, appendix C.1, whose plaintext is read as nonce and counter; SP 800-38A, F.5.1: output blocks."""
    stream = aes_stream(form, bytes(range(16)), bytes.fromhex("00112233445566778899aabb"), 0xCCDDEEFF // 4)
    assert stream[48:64].hex() == "69c4e0d86a7b0430d8cdb78070b4c55a"
    secret = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    stream = aes_stream(form, secret, bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafb"), 0xFCFDFEFF // 4)
    assert stream[48:112].hex() == (
        "ec8cdf7398607cb0f2d21675ea9ea1e4362b7c3c6773516318a077d7fc5073ae"
        "6a2cc3787889374fbeb4c81b17ba6c44e89c399ff0f198c6d40a31db156cabfe"
    )


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=50)
@given(st.binary(min_size=16, max_size=16), st.binary(min_size=12, max_size=12), st.integers(0, 2**30 - 8))
def test_every_form_of_aes_is_aes(form: tuple[str, int], secret: bytes, nonce: bytes, unit: int) -> None:
    assert aes_stream(form, secret, nonce, unit) == reference_stream("aes-128-ctr", secret, nonce, unit, 64).tobytes()


def test_rfc8439_block() -> None:
    """RFC 8439, section 2.3.2."""
    one, eight = np.zeros(8 * prf.CHUNK, np.uint64), np.zeros(8 * prf.CHUNK, np.uint64)
    nonces = nonce_words([bytes.fromhex("000000090000004a00000000")] * 8, [1] * 8)
    streams("chacha20")(round_keys("chacha20", bytes(range(32))), nonces, 0, 1, one, eight)
    expected = (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )
    assert one[:8].tobytes().hex() == eight[0:64:8].tobytes().hex() == expected


@pytest.mark.parametrize("cipher", CIPHERS)
@settings(max_examples=60)
@given(st.data(), st.binary(min_size=32, max_size=32), st.integers(0, 2**29), st.integers(1, prf.CHUNK))
def test_streams_equal_an_independent_implementation(
    cipher: str, data: st.DataObject, secret: bytes, unit: int, vectors: int
) -> None:
    """In both directions, at every length, with a nonce and a beginning for each row."""
    nonces = data.draw(st.lists(st.binary(min_size=12, max_size=12), min_size=8, max_size=8))
    begin = data.draw(st.lists(st.integers(0, 2**29 - 64), min_size=8, max_size=8))
    one, eight = np.zeros(8 * prf.CHUNK, np.uint64), np.zeros(8 * prf.CHUNK, np.uint64)
    streams(cipher)(round_keys(cipher, secret), nonce_words(nonces, begin), unit, vectors, one, eight)
    expected = reference_stream(cipher, secret, nonces[0], begin[0] + unit, 8 * vectors)
    assert np.array_equal(one[: 8 * vectors], expected)
    for row, (nonce, first) in enumerate(zip(nonces, begin, strict=True)):
        expected = reference_stream(cipher, secret, nonce, first + unit, vectors)
        assert np.array_equal(eight.reshape(-1, 8)[:vectors, row], expected)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_key_material_is_a_secret_of_that_cipher(cipher: str) -> None:
    first, second = round_keys(cipher, bytes(SECRET_BYTES)), round_keys(cipher, bytes([1]) + bytes(SECRET_BYTES - 1))
    assert first.flags.c_contiguous
    assert not np.array_equal(first, second)
