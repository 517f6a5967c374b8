"""API keys: made once, kept as digests, found in metadata, and every doubt is a refusal."""

from __future__ import annotations

import hashlib
import json
import stat
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hardening_grpc.auth import ApiKeys, Credential, Unauthenticated, add_key, load_api_keys, read_keys

from hardening.cli import main
from hardening.config import Auth
from hardening.errors import ConfigError


def test_a_key_is_made_stored_as_a_digest_and_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.toml"
    assert main(["credential", "alice", "--keys", str(file)]) == 0
    out, err = capsys.readouterr()
    key = out.strip()
    assert len(key) == len("hrdn_") + 43
    assert key not in err
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (facts,) = tomllib.loads(file.read_text()).values()
    assert facts.pop("key") == f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    assert list(facts) == ["since"]
    assert main(["credential", 'b"o\\b é', "--keys", str(file), "--json"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["client"] == 'b"o\\b é'
    keys = load_api_keys(Auth("file:keys.toml"), tmp_path)
    assert keys.client([("x-api-key", key)]).credential == "alice"
    assert keys.client([("x-api-key", second["key"])]).credential == 'b"o\\b é'
    assert [p.name for p in tmp_path.iterdir()] == ["keys.toml"]


def test_a_key_is_replaced_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.toml"
    old = add_key(file, "alice")
    before = file.read_bytes()
    assert main(["credential", "alice", "--keys", str(file)]) == 2
    assert "--replace" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert main(["credential", "alice", "--keys", str(file), "--replace"]) == 0
    keys = ApiKeys(read_keys(file))
    assert keys.client([("x-api-key", capsys.readouterr().out.strip())]).credential == "alice"
    with pytest.raises(Unauthenticated):
        keys.client([("x-api-key", old)])


@pytest.mark.parametrize("name", ["", "a" * 65, "a\nb", "anonymous", "(pooled)"])
def test_names_that_cannot_be_clients(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["credential", "--keys", str(tmp_path / "keys.toml"), "--", name]) == 2
    assert "cannot be a client" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_two_at_once_lose_nothing(tmp_path: Path) -> None:
    names = [f"client {i}" for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        made = dict(zip(names, pool.map(lambda n: add_key(tmp_path / "keys.toml", n), names), strict=True))
    keys = ApiKeys(read_keys(tmp_path / "keys.toml"))
    assert {n: keys.client([("x-api-key", k)]).credential for n, k in made.items()} == {n: n for n in names}


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot open the folder"):
        add_key(tmp_path / "absent" / "keys.toml", "alice")
    (tmp_path / "keys.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot read"):
        add_key(tmp_path / "keys.toml", "alice")


DIGEST = "sha256:" + hashlib.sha256(b"k").hexdigest()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("alice = ", "not valid TOML"),
        ("alice = 3", "must be sha256:"),
        ('alice = "k"', "must be sha256:"),
        (f'alice = "{DIGEST[:-1]}"', "must be sha256:"),
        (f'alice = "{DIGEST.upper()}"', "must be sha256:"),
        (f'[clients]\nalice = "{DIGEST}"', "must be sha256:"),
        (f'anonymous = "{DIGEST}"', "cannot be a client"),
        (f'alice = "{DIGEST}"\nbob = "{DIGEST}"', "'bob' .* has the key of another"),
        ("\udcff", "not text in UTF-8"),
    ],
)
def test_files_that_are_wrong(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=problem) as caught:
        load_api_keys(Auth("file:keys.toml"), tmp_path)
    assert caught.value.path == "auth.api_keys"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_files_that_others_can_write(mode: int, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'alice = "{DIGEST}"')
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"written by other users \\({mode:04o}\\)"):
        read_keys(file)
    file.chmod(0o644)
    assert list(read_keys(file)) == ["alice"]
    with pytest.raises(ConfigError, match="cannot read"):
        read_keys(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("x-api-key", "")],
        [("x-api-key", "K")],
        [("x-api-key", "k ")],
        [("x-api-key", "k"), ("x-api-key", "other")],
        [("x-api-key", "k"), ("authorization", "Bearer other")],
        [("authorization", "k")],
        [("authorization", "Basic k")],
        [("authorization", "Bearer")],
        [("x-api-key-bin", b"k")],
        [("x-api-key", DIGEST)],
        [("x-api-key", bytes(32).hex())],
    ],
)
def test_doubts_are_refused(metadata: Any) -> None:
    with pytest.raises(Unauthenticated):
        ApiKeys({"alice": Credential(hashlib.sha256(b"k").digest())}).client(metadata)


@pytest.mark.parametrize(
    "metadata",
    [
        [("x-api-key", "k")],
        [("authorization", "Bearer k")],
        [("authorization", "bearer  k ")],
        [("x-api-key", "k"), ("authorization", "Bearer k")],
        [("user-agent", "x"), ("authorization", "Basic eDp5"), ("x-api-key", "k")],
    ],
)
def test_one_known_key_is_enough(metadata: Any) -> None:
    assert ApiKeys({"alice": Credential(hashlib.sha256(b"k").digest())}).client(metadata).credential == "alice"
