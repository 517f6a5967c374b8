"""Policies: TOML and Python give equal objects; every mistake is named by its dotted path; keys by reference."""

from __future__ import annotations

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import hardening
import hardening.cli
from hardening.config import Auth, KeySource, Output, Policy, Tls, load_policy, parse_policy
from hardening.errors import ConfigError
from hardening.keys import load_key
from hardening.ledger import Budget, LedgerRules, Window
from hardening.noise import CIPHERS, Key
from hardening.policy import ClientRules, Response, Step
from hardening.transforms import Gaussian, LabelOnly, Project, TopK, Types

GOOD = """
schema = 1
[key]
source = "file:hardening.key"
create = true
[outputs.probabilities]
space = "simplex"
label_output = "label"
classes = ["cat", "dog"]
[outputs.probabilities.tiers]
normal = [ {kind = "gaussian", sigma = 0.05, key = "input"}, {kind = "project", keep_top1 = true},
  {kind = "types", n = 100} ]
suspect = [ {kind = "top_k", k = 1}, {kind = "types", n = 10} ]
label   = [ {kind = "label_only"} ]
"""


def test_toml_and_python_are_equal(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(GOOD)
    loaded = hardening.load_policy(tmp_path / "policy.toml")
    built = Policy(
        outputs={
            "probabilities": Output(
                space="simplex",
                label_output="label",
                classes=("cat", "dog"),
                tiers={
                    "normal": (Gaussian(sigma=0.05), Project(keep_top1=True), Types(n=100)),
                    "suspect": (TopK(k=1), Types(n=10)),
                    "label": (LabelOnly(),),
                },
            )
        },
        key=KeySource("file:hardening.key", create=True),
    )
    assert loaded == built
    named = parse_policy(GOOD.replace("create = true", 'create = true\ncipher = "chacha20"')).key
    assert named == KeySource("file:hardening.key", create=True, cipher="chacha20")
    assert loaded.tiers == ("normal", "suspect", "label")
    assert loaded.root == tmp_path.resolve()
    assert built.pipeline("probabilities", "label").transforms == (LabelOnly(),)


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("schema = 1", "schema = 2", "schema"),
        ("schema = 1", "", "schema"),
        ("schema = 1", "schema = true", "schema"),
        ("[key]", "colour = 1\n[key]", "colour"),
        ("create = true", "creat = true", "key.creat"),
        ("create = true", 'create = "yes"', "key.create"),
        ("create = true", 'cipher = "rot13"', "key.cipher"),
        ("create = true", "cipher = 20", "key.cipher"),
        ("file:hardening.key", "hardening.key", "key.source"),
        ('"file:hardening.key"', '"env:KEY"', "key.create"),
        ('[key]\nsource = "file:hardening.key"\ncreate = true', "", "key"),
        ("[key]", '[clients]\nanonymous = "maybe"\n[key]', "clients.anonymous"),
        ("[key]", '[clients]\nanon = "deny"\n[key]', "clients.anon"),
        ('"simplex"', '"simplx"', "outputs.probabilities.space"),
        ('label_output = "label"', "label_output = 3", "outputs.probabilities.label_output"),
        ("sigma = 0.05", "sigm = 0.05", "outputs.probabilities.tiers.normal[0].sigm"),
        ("sigma = 0.05", "sigma = -1", "outputs.probabilities.tiers.normal[0].sigma"),
        ("sigma = 0.05, ", "", "outputs.probabilities.tiers.normal[0].sigma"),
        ('key = "input"', 'key = "client"', "outputs.probabilities.tiers.normal[0].key"),
        ('"types", n = 100', '"types", n = 1.5', "outputs.probabilities.tiers.normal[2].n"),
        ('"gaussian"', '"gauss"', "outputs.probabilities.tiers.normal[0].kind"),
        (', {kind = "project", keep_top1 = true}', "", "outputs.probabilities.tiers.normal[1]"),
        ('[ {kind = "label_only"} ]', "3", "outputs.probabilities.tiers.label"),
    ],
)
def test_mistakes_are_named_by_path(old: str, new: str, path: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        parse_policy(GOOD.replace(old, new, 1))
    assert caught.value.path == path, str(caught.value)


SERVER = """
[auth]
api_keys = "file:keys.toml"
[tls]
certificate = "file:server.pem"
key = "env:SERVER_KEY"
"""


def test_who_may_ask_a_server() -> None:
    policy = parse_policy(GOOD + SERVER)
    assert policy.auth == Auth("file:keys.toml")
    assert policy.auth.allow_plaintext is False
    assert policy.tls == Tls("file:server.pem", "env:SERVER_KEY")
    assert policy.tls.client_ca is None
    plain = parse_policy(GOOD)
    assert (plain.auth, plain.tls) == (None, None)
    both = parse_policy(GOOD + SERVER.replace("[tls]", 'allow_plaintext = true\n[tls]\nclient_ca = "file:ca.pem"'))
    assert both.auth == Auth("file:keys.toml", allow_plaintext=True)
    assert both.tls == Tls("file:server.pem", "env:SERVER_KEY", "file:ca.pem")


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ('"file:keys.toml"', '"file:keys.toml"\ntrusted_hops = -1', "auth.trusted_hops"),
        ('"file:keys.toml"', '"keys.toml"', "auth.api_keys"),
        ('"file:keys.toml"', '"env:KEYS"', "auth.api_keys"),
        ('"file:keys.toml"', "1", "auth.api_keys"),
        ("api_keys", "api_key", "auth.api_key"),
        ('api_keys = "file:keys.toml"', "", "auth.api_keys"),
        ("[tls]", "allow_plaintext = 1\n[tls]", "auth.allow_plaintext"),
        ('"file:server.pem"', '"file:"', "tls.certificate"),
        ('"env:SERVER_KEY"', '"-----BEGIN"', "tls.key"),
        ('key = "env:SERVER_KEY"', "", "tls.key"),
        ("[tls]", '[tls]\nclient_ca = "ca.pem"', "tls.client_ca"),
        ("[tls]", '[tls]\nca = "file:ca.pem"', "tls.ca"),
        ("[auth]", "[[auth]]", "auth"),
        ("[tls]", "[[tls]]", "tls"),
    ],
)
def test_mistakes_of_servers_are_named_by_path(old: str, new: str, path: str) -> None:
    assert old in SERVER
    with pytest.raises(ConfigError) as caught:
        parse_policy(GOOD + SERVER.replace(old, new, 1))
    assert caught.value.path == path, str(caught.value)


BUDGETS = """
[clients]
identity = ["credential", "organisation", "prefix"]
ipv4 = 20
probation = "7d"
credentials = 50
[budgets.credential]
bits = 2e6
queries = { per = "1h", max = 5000 }
on_exhausted = "label"
[budgets.probation]
bits = 1000
[budgets.model]
bits = 1e9
[ledger]
url = "sqlite:///books.db"
[respond]
suspicion = [ {at = 0.5, throttle = {per = "1m", max = 10}}, {at = 1, tier = "suspect"}, {at = 2, deny = true} ]
hysteresis = 0.2
ttl = "12h"
"""


def test_what_clients_may_learn() -> None:
    policy = parse_policy(GOOD + BUDGETS)
    assert policy.budgets == {
        "credential": Budget(bits=2e6, queries=Window("1h", 5000), on_exhausted="label"),
        "probation": Budget(bits=1000.0),
        "model": Budget(bits=1e9),
    }
    identity = ("credential", "organisation", "prefix")
    assert policy.clients == ClientRules(identity=identity, ipv4=20, probation="7d", credentials=50)  # type: ignore[arg-type]
    assert policy.ledger == LedgerRules("sqlite:///books.db")
    steps = (Step(0.5, throttle=Window("1m", 10)), Step(1.0, tier="suspect"), Step(2.0, deny=True))
    assert policy.respond == Response(steps, hysteresis=0.2, ttl="12h")
    assert policy.reachable == ("normal", "suspect", "label")
    plain = parse_policy(GOOD)
    assert (plain.budgets, plain.ledger, plain.respond) == ({}, LedgerRules(), Response())
    assert plain.reachable == ("normal",)


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("[budgets.model]", "[budgets.planet]", "budgets.planet"),
        ("[budgets.model]", "[budgets.principal]", "budgets.principal"),
        ("bits = 2e6", "bit = 2e6", "budgets.credential.bit"),
        ("bits = 2e6", "bits = 0", "budgets.credential.bits"),
        ("bits = 2e6", 'bits = "many"', "budgets.credential.bits"),
        ("bits = 2e6", "bits = 1e12", "budgets.credential.bits"),
        ("bits = 1e9", 'on_exhausted = "label"', "budgets.model"),
        ('{ per = "1h", max = 5000 }', "5000", "budgets.credential.queries"),
        ('per = "1h"', 'per = "1w"', "budgets.credential.queries.per"),
        ('per = "1h", ', "", "budgets.credential.queries.per"),
        ("max = 5000", "max = 0", "budgets.credential.queries.max"),
        ("max = 5000", "most = 5000", "budgets.credential.queries.most"),
        ('on_exhausted = "label"', 'on_exhausted = "lable"', "budgets.credential.on_exhausted"),
        ('on_exhausted = "label"', 'on_exhausted = "normal"', "budgets.credential.on_exhausted"),
        ('"credential", "organisation"', '"credential", "planet"', "clients.identity[1]"),
        ('"organisation", ', "", "clients.credentials"),
        ("ipv4 = 20", "ipv4 = 33", "clients.ipv4"),
        ('probation = "7d"', 'probation = "soon"', "clients.probation"),
        ('probation = "7d"', "", "budgets.probation"),
        ("[budgets.probation]\nbits = 1000", "", "clients.probation"),
        ("sqlite:///books.db", "sqlite:books.db", "ledger.url"),
        ("url =", "uri =", "ledger.uri"),
        ('tier = "suspect"', 'tier = "suspicious"', "respond.suspicion[1].tier"),
        ('tier = "suspect"', "tire = 1", "respond.suspicion[1].tire"),
        ('tier = "suspect"', 'tier = "suspect", deny = true', "respond.suspicion[1].deny"),
        ("at = 0.5", "at = -1", "respond.suspicion[0].at"),
        ("at = 0.5", "at = 3", "respond.suspicion"),
        ('per = "1m"', 'per = "1s"', "respond.suspicion[0].throttle.per"),
        ('ttl = "12h"', 'ttl = "12"', "respond.ttl"),
        ("hysteresis = 0.2", "hysteresis = -0.2", "respond.hysteresis"),
        ("hysteresis", "hysterisis", "respond.hysterisis"),
    ],
)
def test_mistakes_of_budgets_are_named_by_path(old: str, new: str, path: str) -> None:
    assert old in BUDGETS
    with pytest.raises(ConfigError) as caught:
        parse_policy(GOOD + BUDGETS.replace(old, new, 1))
    assert caught.value.path == path, str(caught.value)


def test_no_tier_is_called_deny() -> None:
    with pytest.raises(ConfigError, match="stands for a refusal") as caught:
        parse_policy(GOOD.replace("label   =", "deny    ="))
    assert caught.value.path == "outputs.probabilities.tiers.deny"


LOSSES = """
schema = 1
[key]
source = "file:hardening.key"
[budgets.credential]
rho = 1.0
on_exhausted = "label"
[outputs.p]
space = "simplex"
[outputs.p.tiers]
normal = [ {kind = "gaussian", sigma = 0.05, sensitivity = 0.1}, {kind = "project"} ]
free = [ {kind = "types", n = 10} ]
label = [ {kind = "laplace", scale = 0.1, sensitivity = 0.1}, {kind = "project"}, {kind = "label_only"} ]
"""


def test_a_budget_of_privacy_loss_needs_losses_that_are_stated() -> None:
    policy = parse_policy(LOSSES)
    assert policy.reachable == ("normal", "label"), "what is never chosen may do as it likes"
    kept = LOSSES.replace('{kind = "project"} ]', '{kind = "project", keep_top1 = true} ]', 1)
    assert parse_policy(kept).budgets == policy.budgets


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (", sensitivity = 0.1}", "}", "outputs.p.tiers.normal needs noise with a sensitivity"),
        ("sensitivity = 0.1}", 'key = "cell"}', "outputs.p.tiers.normal promises no privacy loss .its relation: capac"),
        ('{kind = "gaussian", sigma = 0.05, sensitivity = 0.1}', '{kind = "reverse_sigmoid", beta = 1, gamma = 0.1}',
         "outputs.p.tiers.normal promises no privacy loss .its relation: none"),
        ('"label"', '"free"', "outputs.p.tiers.free promises no privacy loss .its relation: capacity"),
        ("[outputs.p]", '[outputs.y]\nspace = "labels"\n[outputs.p]', "outputs.y is released as it is"),
        ("[outputs.p]", '[outputs.y]\nspace = "open"\n[outputs.p]', "outputs.y is released as it is"),
    ],
)  # fmt: skip
def test_losses_that_are_not_stated(old: str, new: str, said: str) -> None:
    assert old in LOSSES
    with pytest.raises(ConfigError, match=said) as caught:
        parse_policy(LOSSES.replace(old, new, 1))
    assert caught.value.path == "budgets.credential.rho"


def test_close_misses_are_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean 'sigma'"):
        parse_policy(GOOD.replace("sigma", "sigm"))


@pytest.mark.parametrize("text", ["schema = 1", "schema = 1\n[outputs]", "schema = ", "\x00"])
def test_empty_or_broken_policies(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_policy(text)


def test_unreadable_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the policy"):
        load_policy(tmp_path / "absent.toml")


def test_a_key_is_created_once_and_privately(tmp_path: Path) -> None:
    source = KeySource("file:new.key", create=True)
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: load_key(source, tmp_path), range(32)))
    assert all(k == keys[0] for k in keys)
    assert stat.S_IMODE((tmp_path / "new.key").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["new.key"]
    assert load_key(KeySource("file:new.key"), tmp_path) == keys[0]


def test_keys_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="create = true"):
        load_key(KeySource("file:absent.key"), tmp_path)
    with pytest.raises(ConfigError, match="cannot create"):
        load_key(KeySource("file:no/such/folder.key", create=True), tmp_path)
    (tmp_path / "open.key").write_text(Key(1, "chacha20", bytes(32)).format())
    (tmp_path / "open.key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_key(KeySource("file:open.key"), tmp_path)
    (tmp_path / "open.key").write_bytes(b"\xff\xfe")
    (tmp_path / "open.key").chmod(0o600)
    with pytest.raises(ConfigError, match="not text"):
        load_key(KeySource("file:open.key"), tmp_path)
    with pytest.raises(ConfigError, match="not set"):
        load_key(KeySource("env:HARDENING_ABSENT"), tmp_path)
    monkeypatch.setenv("HARDENING_PRESENT", Key(3, "chacha20", bytes(32)).format())
    assert load_key(KeySource("env:HARDENING_PRESENT"), tmp_path).epoch == 3


@pytest.mark.parametrize("cipher", CIPHERS)
def test_the_cipher_belongs_to_the_key(cipher: str, tmp_path: Path) -> None:
    other = next(c for c in CIPHERS if c != cipher)
    key = load_key(KeySource("file:k.key", create=True, cipher=cipher), tmp_path)
    assert key.cipher == cipher
    assert load_key(KeySource("file:k.key", create=True), tmp_path) == key
    assert load_key(KeySource("file:new.key", create=True), tmp_path).cipher == "aes-128-ctr"
    for create in (True, False):
        with pytest.raises(ConfigError, match=f"'{other}', and the key is for '{cipher}'") as caught:
            load_key(KeySource("file:k.key", create=create, cipher=other), tmp_path)
        assert caught.value.path == "key.cipher"


@pytest.mark.parametrize("closed", ["file", "folder"])
def test_keys_of_another_user(closed: str, tmp_path: Path) -> None:
    """In a process that is not root, since root reads everything."""
    folder = tmp_path / "folder"
    load_key(KeySource("file:own.key", create=True), tmp_path)
    folder.mkdir()
    source = "own.key" if closed == "file" else "folder/absent.key"
    script = f"""
import os, pathlib
from hardening.config import KeySource
from hardening.keys import load_key
from hardening.ledger import Budget, LedgerRules, Window
os.chdir({str(tmp_path)!r})
os.chmod(".", 0o755)
os.chmod("folder", 0)
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
else:
    os.chmod("own.key", 0)
for create in (True, False):
    try:
        load_key(KeySource("file:{source}", create=create), pathlib.Path())
    except Exception as problem:
        print(type(problem).__name__, problem, sep=": ")
"""
    try:
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    finally:
        folder.chmod(0o700)
    first, second = said.splitlines()
    assert first.startswith("ConfigError: key.source: cannot ")
    assert second == f"ConfigError: key.source: cannot read {source!r}: Permission denied"


DOUBTFUL = """
schema = 1
[outputs.p]
space = "simplex"
[outputs.p.tiers]
normal = [ {kind = "types", n = 10} ]
label  = [ {kind = "label_only"} ]
fine   = [ {kind = "types", n = 1000} ]
[clients]
identity = ["credential", "prefix"]
[auth]
api_keys = "file:keys.toml"
[ledger]
url = "sqlite:///books.db"
[budgets.prefix]
bits = 1.0e4
"""


@pytest.mark.parametrize(
    ("changed", "to", "warned"),
    [
        ("", "", ()),
        ("bits = 1.0e4", 'bits = 1.0e4\non_exhausted = "label"', ()),
        ("bits = 1.0e4", 'bits = 1.0e4\non_exhausted = "fine"', ("outputs.p.tiers.fine",)),
        ('url = "sqlite:///books.db"', 'url = "memory:"', ("ledger.url",)),
        ('"file:keys.toml"', '"file:keys.toml"\nallow_plaintext = true', ("auth.trusted_hops",)),
        ('"file:keys.toml"', '"file:keys.toml"\nallow_plaintext = true\ntrusted_hops = 1', ()),
        (
            "[ledger]",
            '[respond]\nhysteresis = 1.0\nsuspicion = [{at = 1.0, tier = "label"}]\n[ledger]',
            ("detect.baseline", "respond.hysteresis"),
        ),
    ],
)
def test_what_is_allowed_and_should_be_known(
    changed: str, to: str, warned: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The policy says it, and so do the commands and, in the log, whoever hardens by it."""
    file = tmp_path / "policy.toml"
    file.write_text(DOUBTFUL.replace(changed, to, 1) if changed else DOUBTFUL)
    policy = load_policy(file)
    assert tuple(sentence.partition(":")[0] for sentence in policy.warnings) == warned
    assert hardening.cli.main(["check", "--no-files", str(file)]) == 0
    assert capsys.readouterr().out.count("warning: ") == len(warned)
    assert hardening.cli.main(["explain", str(file), "--classes", "10", "--json"]) == 0
    assert capsys.readouterr().err.count("warning: ") == len(warned)


def test_tiers_are_compared_at_the_width_there_is() -> None:
    """Two of three classes in twentieths say more than all in quarters; two of a thousand say less."""
    tiers = {"quarters": (Types(n=4),), "two": (TopK(k=2), Types(n=20))}
    budgets = {"credential": Budget(bits=1e3, on_exhausted="two")}
    for classes, warned in ((None, False), (3, True), (1000, False)):
        output = Output("simplex", tiers, "y", None if classes is None else tuple(range(classes)))
        policy = Policy({"p": output}, budgets=budgets, ledger=LedgerRules("sqlite:///b.db"))
        assert bool(policy.warnings) == warned, classes


def test_a_guard_says_once_what_should_be_known(caplog: pytest.LogCaptureFixture) -> None:
    policy = Policy({"p": Output("simplex", {"normal": (Types(n=10),)})}, budgets={"credential": Budget(bits=1e3)})
    with hardening.Guard(policy):
        assert [r.getMessage() for r in caplog.records if r.name == "hardening.policy"] == list(policy.warnings)
    assert len(policy.warnings) == 1


def test_a_table_of_clients_as_large_as_the_policy_says(tmp_path: Path) -> None:
    policy = parse_policy(GOOD + "[clients]\ncapacity = 2\n", tmp_path)
    with hardening.Guard(policy) as guard:
        for name in ("a", "b", "c", "d"):
            guard.admit(name, 1)
        assert {name: s.queries for name, s in guard.clients().items()} == {"a": 1, "b": 1, "(pooled)": 2}
    with pytest.raises(ConfigError, match=r"clients\.capacity: must be a whole number"):
        parse_policy(GOOD + "[clients]\ncapacity = 2.5\n", tmp_path)


def test_clients_that_no_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise MemoryError

    monkeypatch.setattr("hardening.guard.Clients", full)
    with pytest.raises(ConfigError, match=r"clients\.capacity: there is no memory for 16384 clients"):
        hardening.Guard(parse_policy(GOOD, tmp_path))
