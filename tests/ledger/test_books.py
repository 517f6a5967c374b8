"""The arithmetic of the books: properties of one settlement, the window under many replicas, and Lua against Python."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardening.ledger.amounts import MOST, Bound
from hardening.ledger.books import LAPSE, SHARE, Ask, Entry, settle
from hardening.ledger.lease import Lease
from hardening.ledger.redis import ACCOUNT, REPLICA, ROLL, RedisStore
from hardening.ledger.script import LEASE
from tests.ledger.server import PATIENCE, Server

NOW = 1_750_000_000_000
SMALL = st.integers(0, 200)
LARGE = st.one_of(SMALL, st.integers(0, 1 << 45), st.integers(MOST - 5, MOST))


@st.composite
def asks(draw: st.DrawFn, amounts: st.SearchStrategy[int] = SMALL, per: int | None = None) -> Ask:
    per = draw(st.sampled_from([0, 60_000, 3_600_000])) if per is None else per
    used = draw(amounts)
    own = used + draw(SMALL) if per else min(MOST, used + draw(amounts))
    limit = draw(amounts) if not per else draw(st.integers(1, min(300, MOST // per)))
    known, since = own + draw(st.integers(-20, 200)), draw(st.sampled_from([0, NOW - 1000, NOW - 900, NOW, NOW + 1]))
    wanted = draw(amounts), draw(amounts)
    return Ask("credential:alice", "queries", own, used, *wanted, limit, per, max(0, known), since)


@st.composite
def entries(draw: st.DrawFn, amounts: st.SearchStrategy[int] = SMALL) -> Entry:
    stamp = draw(st.sampled_from([0, NOW, NOW - 1000, NOW + 1000, NOW - 59_999, NOW + 10**9]))
    level = draw(st.integers(0, 10**9))
    return Entry(draw(amounts), draw(amounts), level, stamp, draw(SMALL), draw(SMALL))


@given(entries(), SMALL, asks(per=0))
def test_a_lifetime_budget(entry: Entry, recorded: int, ask: Ask) -> None:
    """The bound holds beyond what was told to the store; what the replica knows to hold is kept; unspent is bounded."""
    after, granted, restored = settle(entry, recorded, ask, NOW)
    bound = ask.limit + entry.extra
    assert restored == max(0, ask.own - recorded)
    assert granted >= ask.own
    assert after.total == entry.total + granted - recorded
    assert after.total <= max(bound, entry.total + restored)
    left = max(0, bound - entry.total - restored) + recorded + restored - ask.used
    assert granted - ask.used <= max(ask.own - ask.used, ask.need, left // SHARE)
    assert granted - ask.used <= max(ask.own - ask.used, ask.need, ask.want)
    covered = granted - ask.used >= ask.need
    assert covered == (ask.own - ask.used >= ask.need or left >= ask.need <= ask.want)


@given(entries(), SMALL, asks(per=0))
def test_asking_twice_changes_nothing(entry: Entry, recorded: int, ask: Ask) -> None:
    """As when an answer was lost: the same request again finds what it was granted, and takes nothing more."""
    after, granted, _ = settle(entry, recorded, ask, NOW)
    assert settle(after, granted, ask, NOW) == (after, granted, 0)


def test_all_of_a_budget_can_be_had() -> None:
    entry, own = Entry(extra=5), 0
    for spent in range(100):
        entry, own, _ = settle(entry, own, Ask("a", "bits", own, spent, 1, 1000, 95, 0), NOW)
        assert own > spent
    assert settle(entry, own, Ask("a", "bits", own, 100, 1, 1, 95, 0), NOW)[:2] == (entry, 100)


def test_a_bound_that_was_lowered_takes_nothing_back() -> None:
    entry = Entry(total=50)
    assert settle(entry, 50, Ask("a", "bits", 50, 45, 0, 10, 20, 0), NOW) == (entry, 50, 0)


def test_what_is_returned_is_there_for_others() -> None:
    entry, own, _ = settle(Entry(), 0, Ask("a", "bits", 0, 0, 60, 60, 100, 0), NOW)
    entry, own, _ = settle(entry, own, Ask("a", "bits", 7, 7, 0, 0, 100, 0), NOW)
    assert (entry.total, own) == (7, 7)


# The window


class Bucket:
    """Replicas of one account with a window, and every row they admitted."""

    def __init__(self, most: int, per: int, replicas: int) -> None:
        self.most, self.per, self.now = most, per, NOW
        self.entry = Entry()
        self.recorded = [0] * replicas
        self.leases = [Lease("credential:a", "queries", Bound(most, per)) for _ in range(replicas)]
        self.admitted: list[tuple[int, int]] = []

    def ask(self, replica: int, amount: int) -> bool:
        lease = self.leases[replica]
        seconds = self.now / 1000
        if lease.lapses <= seconds:
            lease.lapse()
        if lease.left < amount or lease.left < lease.mark:
            lease.wait(amount)
            ask = lease.ask(seconds)
            self.entry, self.recorded[replica], _ = settle(self.entry, self.recorded[replica], ask, self.now)
            lease.renew(ask, self.recorded[replica], seconds, self.now)
        if lease.left < amount:
            return False
        lease.left -= amount
        lease.spent += amount
        self.admitted.append((self.now, amount))
        return True

    def give_back(self, replica: int, late: int) -> None:
        """Return what is left, in a request that is on its way for `late` milliseconds."""
        lease, seconds = self.leases[replica], self.now / 1000
        if lease.lapses <= seconds:
            lease.lapse()
        ask = lease.part()
        self.now += late
        self.entry, _, _ = settle(self.entry, self.recorded[replica], ask, self.now)
        self.recorded[replica] = 0
        lease.parted()

    def check(self) -> None:
        """No stretch of time saw more than a bucket may let through."""
        end, total = self.admitted[-1][0] if self.admitted else self.now, 0
        for began, amount in reversed(self.admitted):
            total += amount
            assert total <= self.most * (1 + (end - began) / self.per)


PAUSES = [0, 1, 100, 500, 930, 937, 938, 1_000, 1_870, 1_880, 5_000, 30_000, 60_000, 200_000]
#: A replica, whether it asks for all that it can get, or gives all back; how much it asks for otherwise, or how long it
#: takes in ms; and the pause before, in ms.
WHAT = st.sampled_from(["some", "some", "all", "return"])
STEPS = st.lists(st.tuples(st.integers(0, 2), WHAT, st.integers(1, 80), st.sampled_from(PAUSES)), max_size=40)


@settings(max_examples=300)
@given(st.sampled_from([1, 5, 63, 64, 640, 6400]), STEPS)
def test_no_stretch_of_time_sees_more_than_the_bucket_lets_through(
    most: int, steps: list[tuple[int, str, int, int]]
) -> None:
    bucket = Bucket(most, 60_000, 3)
    for replica, what, amount, pause in steps:
        bucket.now += pause
        if what == "return":
            bucket.give_back(replica, 100 * (amount - 1))
            continue
        while bucket.ask(replica, max(1, most // 16) if what == "all" else amount) and what == "all":
            bucket.check()
        bucket.check()


def renew(bucket: Bucket, replica: int) -> None:
    lease = bucket.leases[replica]
    ask = lease.ask(bucket.now / 1000)
    bucket.entry, bucket.recorded[replica], _ = settle(bucket.entry, bucket.recorded[replica], ask, bucket.now)
    lease.renew(ask, bucket.recorded[replica], bucket.now / 1000, bucket.now)


def burst(bucket: Bucket) -> int:
    """Rows that all can have at once: the last replica the most in one piece, the others what they hold."""
    *others, last = range(len(bucket.leases))
    most = next((n for n in range(bucket.most, 0, -1) if bucket.ask(last, n)), 0)
    return most + sum(bucket.leases[i].left for i in others if bucket.leases[i].lapses > bucket.now / 1000)


@pytest.mark.parametrize("burst", [6300, 6301, 6350, 6399, 6400])
def test_what_is_on_lease_leaves_that_much_less_in_the_bucket(burst: int) -> None:
    """Even after the bucket had the time to fill up again: a burst is no larger than the bucket."""
    bucket = Bucket(6400, 60_000, 2)
    assert bucket.ask(0, 25)
    assert bucket.leases[0].left == 75
    bucket.now += 930  # at its rate the bucket gets 99 rows
    assert bucket.ask(1, burst) == (burst == 6300)


def test_what_is_kept_over_renewals_counts_as_leased_anew() -> None:
    bucket = Bucket(6400, 60_000, 3)
    assert bucket.ask(0, 25)
    for _ in range(5):
        bucket.now += 900  # into the next span
        assert bucket.ask(1, 25)
        renew(bucket, 0)
        renew(bucket, 1)
    bucket.now += 900
    assert bucket.leases[0].left >= 75
    assert bucket.leases[1].left >= 75
    assert 6400 - 400 <= burst(bucket) <= 6400


def test_a_client_that_hammers_gets_its_rate() -> None:
    bucket = Bucket(300, 60_000, 3)
    for step in range(60_000):  # ten minutes, a request every 10 ms
        bucket.now = NOW + 10 * step
        bucket.ask(step % 3, 1)
    bucket.check()
    assert 300 + 0.9 * 3000 <= len(bucket.admitted) <= 300 + 3000


def test_a_client_that_is_forgotten_after_each_request_loses_nothing() -> None:
    """What it had on lease is given back, and can be leased again."""
    bucket = Bucket(300, 60_000, 3)
    for step in range(400):
        bucket.now = NOW + 10 * step
        bucket.ask(step % 3, 1)
        bucket.give_back(step % 3, 0)
    bucket.check()
    assert 300 <= len(bucket.admitted) <= 300 + 4 * 5


def test_rows_that_are_given_back_too_late_have_lapsed() -> None:
    bucket = Bucket(6400, 60_000, 2)
    assert bucket.ask(0, 25)
    lease = bucket.leases[0]
    ask = lease.part()
    bucket.now += 60_000 // LAPSE + 1
    before = settle(bucket.entry, 0, Ask("b", "queries", 0, 0, 0, 0, 6400, 60_000), bucket.now).entry
    after, granted, _ = settle(bucket.entry, bucket.recorded[0], ask, bucket.now)
    assert (after, granted) == (before, 25)


def test_a_client_that_is_slow_is_never_refused() -> None:
    """What lapses on three replicas does not dry the bucket up."""
    bucket = Bucket(300, 60_000, 3)
    for step in range(1_000):
        bucket.now = NOW + 1_000 * step
        assert bucket.ask(step % 3, 1)


def drained() -> Bucket:
    bucket = Bucket(300, 60_000, 1)
    while bucket.ask(0, 1):
        pass
    assert len(bucket.admitted) == 300
    return bucket


def gained(bucket: Bucket) -> int:
    before = len(bucket.admitted)
    while bucket.ask(0, 1):
        pass
    return len(bucket.admitted) - before


@pytest.mark.parametrize("jump", [61_000, 10**9, 10**12])
def test_a_clock_set_forward_fills_the_bucket_once(jump: int) -> None:
    bucket = drained()
    bucket.now += jump
    assert gained(bucket) <= 300
    assert gained(bucket) == 0
    bucket.now -= jump  # and when it is set right again, nothing is gained
    assert gained(bucket) == 0
    bucket.now += 2_000
    assert gained(bucket) <= 10


@pytest.mark.parametrize("jump", [1_000, 59_000, 61_000, 10**9, NOW - 1])
def test_a_clock_set_back_gives_nothing_and_locks_nobody_out(jump: int) -> None:
    bucket = drained()
    bucket.now -= jump
    assert gained(bucket) == 0
    bucket.now += 60_000 + 60_000  # at the latest after one window the bucket fills again, within another
    assert gained(bucket) >= 290


@given(st.lists(st.integers(-(10**7), 10**7), max_size=30))
def test_each_jump_gains_one_bucket_at_most(jumps: list[int]) -> None:
    bucket = drained()
    for jump in jumps:
        bucket.now = max(1, bucket.now + jump)
        assert gained(bucket) <= 300


def test_a_clock_that_swings_gains_what_one_swing_is_worth() -> None:
    """As when processes see clocks that differ: the bucket goes by the one that is ahead."""
    bucket, total = drained(), 0
    for _ in range(100):
        bucket.now += 10_000
        total += gained(bucket)
        bucket.now -= 10_000
        total += gained(bucket)
    assert 40 <= total <= 50


def test_a_lost_window_starts_empty_for_who_remembers() -> None:
    bucket = drained()
    bucket.entry, bucket.recorded = Entry(), [0]
    assert gained(bucket) == 0


def test_rows_on_lease_lapse_after_a_share_of_the_window() -> None:
    bucket = Bucket(6400, 60_000, 1)
    assert bucket.ask(0, 1)
    lease = bucket.leases[0]
    assert lease.left > 0
    assert lease.lapses * 1000 == pytest.approx(NOW + 60_000 / LAPSE, abs=1)


# In Lua


@pytest.fixture(scope="module")
def redis(server: Server) -> RedisStore:
    store = RedisStore(server.url, timeout=PATIENCE)
    store.connect()
    return store


@settings(max_examples=400)
@given(st.data())
def test_the_script_settles_as_python_does(redis: RedisStore, data: st.DataObject) -> None:
    amounts = data.draw(st.sampled_from([SMALL, LARGE]))
    entry, recorded, ask = data.draw(entries(amounts)), data.draw(amounts), data.draw(asks(amounts))
    now = data.draw(st.sampled_from([NOW, NOW + 1, NOW + 938, NOW + 10**7, NOW - 10**7]))
    wanted = settle(entry, recorded, ask, now)

    def work() -> Any:
        call, account, replica = redis._call, ACCOUNT + ask.key, REPLICA + "lua"
        call("DEL", account, replica)
        call("HSET", account, ask.kind, " ".join(map(str, entry)))
        call("HSET", replica, "last", 4, f"{ask.kind} {account}", recorded)
        answer = redis._run(LEASE, [replica, ROLL, account], [5, 100, now, "", *ask[1:]])
        return answer, call("HGET", account, ask.kind), call("HGET", replica, f"{ask.kind} {account}")

    answer, stored, held = redis._with(work)
    assert [int(n) for n in answer] == [4, now, wanted.granted, wanted.restored]
    assert tuple(map(int, stored.split())) == wanted.entry
    assert int(held) == wanted.granted
