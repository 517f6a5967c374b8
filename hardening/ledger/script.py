"""`books.settle` in Lua, for a Redis or Valkey server, which runs it atomically.

Numbers are doubles there, exact up to twice `amounts.MOST`, and are written out in full: Lua itself keeps 14 digits.
"""

from __future__ import annotations

from hardening.ledger.amounts import MOST
from hardening.ledger.books import LAPSE, SHARE
from hardening.ledger.store import REMEMBERED

#: KEYS: the replica's record, the roll of all replicas, then the account of each request. ARGV: number of the exchange,
#: seconds to keep the record, milliseconds since the epoch or "" for the server's own, "" or something if what is held
#: is to be forgotten afterwards; then kind, own, used, need, want, limit, per, known and since of each request. Returns
#: the number of the exchange before and the time, then granted and restored of each; only these two if this exchange
#: was overtaken.
#:
#: A record may be gone while its replica lives: when the server's clock is set forward. The roll tells that from books
#: that were lost. What the replica was said to hold then is in the accounts already, and nothing of it is returned.
LEASE = f"""
local SHARE, LAPSE, MOST = {SHARE}, {LAPSE}, {MOST}
local floor, min, max = math.floor, math.min, math.max
local function text(number) return string.format('%.0f', number) end

local function goal_of(own, used, need, want, held, available)
    local goal = max(own, used + min(want, max(need, floor((available + held - used) / SHARE))))
    goal = min(goal, held + available)
    if goal >= used + need then return goal end
    return own
end

local function filled(e, limit, per, now)
    if e.stamp == 0 then
        e.level, e.stamp, e.recent, e.before = limit * per, now, 0, 0
        return
    end
    local earlier = e.stamp
    if now > e.stamp then
        e.level = e.level + min(now - e.stamp, per) * limit
        e.stamp = now
    elseif e.stamp - now > per then
        e.stamp = now
    end
    local span = max(1, floor(per / LAPSE))
    local spans = floor(e.stamp / span) - floor(earlier / span)
    if spans == 1 then
        e.recent, e.before = 0, e.recent
    elseif spans > 1 then
        e.recent, e.before = 0, 0
    elseif spans < 0 then
        e.recent, e.before = 0, e.recent + e.before
    end
    e.level = min(e.level, max(0, limit - e.recent - e.before) * per)
end

local function settle(e, recorded, own, used, need, want, limit, per, known, since, now)
    local restored = max(0, own - recorded)
    if per == 0 then
        local held = recorded + restored
        e.total = min(MOST, e.total + restored)
        local goal = goal_of(own, used, need, want, held, max(0, min(MOST, limit + e.extra) - e.total))
        e.total = e.total + goal - held
        return goal, restored
    end
    filled(e, limit, per, now)
    local back = 0
    if since <= now and now - since <= max(1, floor(per / LAPSE)) then
        back = max(0, min(known - own, recorded - own, e.recent + e.before))
    end
    local first = min(back, e.before)
    e.before, e.recent = e.before - first, e.recent - back + first
    e.level = max(0, e.level - min(restored, limit) * per)
    e.level = min(e.level + back * per, max(0, limit - e.recent - e.before) * per)
    local goal = goal_of(own, used, need, want, own, floor(e.level / per))
    local kept = own - used
    local moved = min(kept, e.before)
    e.before, e.recent = e.before - moved, max(e.recent + moved, kept) + goal - own
    e.level = min(e.level - (goal - own) * per, max(0, limit - e.recent - e.before) * per)
    e.total = min(MOST, max(0, e.total - back) + restored + (goal - own))
    return goal, restored
end

local record, roll, number, parting = KEYS[1], KEYS[2], tonumber(ARGV[1]), ARGV[4] ~= ''
local last = tonumber(redis.call('HGET', record, 'last') or '0')
local time = redis.call('TIME')
local now = tonumber(ARGV[3]) or tonumber(time[1]) * 1000 + floor(tonumber(time[2]) / 1000)
if number <= last then return {{text(last), text(now)}} end
local forgotten = redis.call('HGET', record, 'forgotten')
if last == 0 and redis.call('ZSCORE', roll, record) then
    forgotten = '1'
    redis.call('HSET', record, 'forgotten', forgotten)
end
redis.call('HSET', record, 'last', ARGV[1])
local reply = {{text(last), text(now)}}
for i = 3, #KEYS do
    local at = 5 + (i - 3) * 9
    local kind, n = ARGV[at], {{}}
    for j = 1, 8 do n[j] = tonumber(ARGV[at + j]) end
    local held = kind .. ' ' .. KEYS[i]
    local e = {{total = 0, extra = 0, level = 0, stamp = 0, recent = 0, before = 0}}
    local entry = redis.call('HGET', KEYS[i], kind)
    if entry then
        local total, extra, level, stamp, recent, before =
            string.match(entry, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
        if not total then return redis.error_reply('the entry of ' .. held .. ' is damaged') end
        e.total, e.extra, e.level = tonumber(total), tonumber(extra), tonumber(level)
        e.stamp, e.recent, e.before = tonumber(stamp), tonumber(recent), tonumber(before)
    end
    local recorded = tonumber(redis.call('HGET', record, held) or (forgotten and min(n[1], n[7])) or 0)
    local granted, restored = settle(e, recorded, n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], now)
    redis.call('HSET', KEYS[i], kind, table.concat({{text(e.total), text(e.extra), text(e.level), text(e.stamp),
        text(e.recent), text(e.before)}}, ' '))
    if parting then
        redis.call('HDEL', record, held)
    else
        redis.call('HSET', record, held, text(granted))
    end
    reply[#reply + 1] = text(granted)
    reply[#reply + 1] = text(restored)
end
redis.call('EXPIRE', record, ARGV[2])
redis.call('ZADD', roll, text(now), record)
redis.call('ZREMRANGEBYRANK', roll, 0, -{REMEMBERED} - 1)
return reply
"""

#: KEYS: the account, the list of grants. ARGV: kind, amount, the line to remember.
EXTEND = f"""
local entry = redis.call('HGET', KEYS[1], ARGV[1]) or '0 0 0 0 0 0'
local total, extra, rest = string.match(entry, '^(%d+) (%d+) (.*)$')
extra = math.min({MOST}, tonumber(extra) + tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], ARGV[1], total .. ' ' .. string.format('%.0f', extra) .. ' ' .. rest)
redis.call('RPUSH', KEYS[2], ARGV[3])
return 1
"""

#: KEYS: accounts. ARGV: kinds. Returns the entry of each kind of each account, "" if there is none.
READ = """
local found = {}
for i = 1, #KEYS do
    for j = 1, #ARGV do found[#found + 1] = redis.call('HGET', KEYS[i], ARGV[j]) or '' end
end
return found
"""

#: KEYS: the replica's record, then what is kept of each client. ARGV: the replica, number of the exchange, whether it
#: has kept something before, seconds to live, seconds to remember it, seconds since the epoch or "", then a row for
#: each client. Returns what became of it, and the number of the exchange before.
KEEP = """
local record, number = KEYS[1], tonumber(ARGV[2])
local known = redis.call('HMGET', record, 'number', 'ended')
if known[2] then return {'ended', '0'} end
if not known[1] and ARGV[3] == '1' then return {'forgotten', '0'} end
local last = known[1] or '0'
if number <= tonumber(last) then return {'kept', last} end
local now = tonumber(ARGV[6]) or tonumber(redis.call('TIME')[1])
redis.call('HSET', record, 'number', ARGV[2], 'until', string.format('%.0f', now + tonumber(ARGV[4])))
redis.call('EXPIRE', record, ARGV[5])
for i = 2, #KEYS do redis.call('HSET', KEYS[i], ARGV[1], ARGV[5 + i]) end
return {'kept', last}
"""

#: Whether a replica is dead: it ended, it is overdue, or nothing is known of it. ARGV[1]: what the names of records
#: begin with. ARGV[2]: seconds since the epoch, or "".
_DEAD = """
local now = tonumber(ARGV[2]) or tonumber(redis.call('TIME')[1])
local known = {}
local function dead(replica)
    if known[replica] == nil then
        local found = redis.call('HMGET', ARGV[1] .. replica, 'until', 'ended')
        known[replica] = not found[1] or found[2] ~= false or tonumber(found[1]) < now
    end
    return known[replica]
end
"""

#: KEYS: what is kept of each client. Returns for each: replica, whether it is dead, row, for each replica.
KEPT = f"""{_DEAD}
local reply = {{}}
for i, key in ipairs(KEYS) do
    local rows, slots = redis.call('HGETALL', key), {{}}
    for j = 1, #rows, 2 do
        slots[#slots + 1] = rows[j]
        slots[#slots + 1] = dead(rows[j]) and 1 or 0
        slots[#slots + 1] = rows[j + 1]
    end
    reply[i] = slots
end
return reply
"""

#: KEYS: what is kept of each fold's client. ARGV[3]: seconds to remember who is ended; then for each fold its new name,
#: its row, how many replicas, and of each of these its name and row. Returns how many were done.
FOLD = f"""{_DEAD}
local at, done = 4, 0
for _, key in ipairs(KEYS) do
    local into, row, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
    local last, there = at + 1 + 2 * count, true
    for j = at + 3, last, 2 do
        there = there and redis.call('HGET', key, ARGV[j]) == ARGV[j + 1] and dead(ARGV[j])
    end
    if there then
        for j = at + 3, last, 2 do
            redis.call('HDEL', key, ARGV[j])
            if redis.call('EXISTS', ARGV[1] .. ARGV[j]) == 1 then
                redis.call('HSET', ARGV[1] .. ARGV[j], 'ended', '1')
                redis.call('EXPIRE', ARGV[1] .. ARGV[j], ARGV[3])
            end
        end
        redis.call('HSET', key, into, row)
        done = done + 1
    end
    at = last + 2
end
return done
"""
