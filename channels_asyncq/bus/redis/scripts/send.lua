-- Log and publish envelopes, each in an entry of its own. For a group, return the normal channels that are members.
-- KEYS: the partition's log; for a group also its members, and its history if it has one. ARGV: the topic; the header
-- that is logged in place of a single envelope that is too large, or empty; the envelopes. MOST_ENTRIES, MOST_BYTES,
-- IS_REQUIRED and those of the history are replaced by their values when the script is loaded. KEPT_ENTRIES is 0
-- without a history.
-- Subscribers get the version byte of the first envelope, #, the id of the last entry, a space and the envelopes. If
-- the server refuses to write, the envelopes are published without an id, unless logging IS_REQUIRED.
local topic, header = ARGV[1], ARGV[2]
local id, ms, seq
for number = 3, #ARGV do
  local entry, kind, most, at = ARGV[number], 'e', 'MOST_ENTRIES', '*'
  if id then
    -- The entries of a push have ids in a row, so receivers know each of them by the last one.
    if not ms then
      ms, seq = string.match(id, '^(%d+)%-(%d+)$')
    end
    seq = string.format('%d', seq + 1)
    at = ms .. '-' .. seq
  end
  if header ~= '' then
    entry, kind = header, 'h'
  end
  if #entry > 1024 then
    most = string.format('%d', math.max(1, math.min(MOST_ENTRIES, math.floor(MOST_BYTES / #entry))))
  end
  id = redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', most, at, 't', topic, kind, entry)
  if type(id) == 'table' then
    -- This is the first envelope: a server that accepts the first write of a script accepts all of them.
    -- (Redis 6 does not count errors inside scripts. There the words of an error begin with the line of the script.)
    local code = string.match(id.err, '^%u+') or ''
    if IS_REQUIRED == 1 or not string.find(' OOM MISCONF NOREPLICAS ', ' ' .. code .. ' ', 1, true) then
      return id
    end
    -- A session that reconnects learns of the gap from this count of errors. Without it, publish nothing.
    local counts = redis.pcall('INFO', 'errorstats')
    if type(counts) == 'table' or not string.find(counts, 'errorstat_' .. code .. ':', 1, true) then
      return id
    end
    id = ''
    break
  end
  if KEPT_ENTRIES > 0 then
    -- Under the id of the log, and whole.
    entry, most = ARGV[number], 'KEPT_ENTRIES'
    if #entry > 1024 then
      most = string.format('%d', math.max(1, math.min(KEPT_ENTRIES, math.floor(KEPT_BYTES / #entry))))
    end
    local kept = redis.pcall('XADD', KEYS[3], 'MAXLEN', most, id, 'e', entry)
    if type(kept) == 'table' and kept.err and string.find(kept.err, 'equal or smaller', 1, true) then
      -- The log was deleted, and begins with a lower id, as the clock was set back.
      redis.pcall('DEL', KEYS[3])
      redis.pcall('XADD', KEYS[3], id, 'e', entry)
    end
  end
end
if KEPT_ENTRIES > 0 and id ~= '' then
  -- Entries that are older than others may have, up to twice their time, show that nothing is missing behind them.
  -- To delete older ones costs as much as to add one. So it is done in every tenth millisecond.
  if string.find(id, '0-', 1, true) then
    local oldest = math.max(0, string.match(id, '^%d+') - 2 * KEPT_MS)
    redis.call('XTRIM', KEYS[3], 'MINID', string.format('%d', oldest))
  end
  redis.call('PEXPIRE', KEYS[3], 'KEPT_MS')
end
-- Make one new string only: Lua reads every byte of each.
ARGV[2] = string.sub(ARGV[3], 1, 1) .. '#' .. id .. ' '
local receivers = redis.call('PUBLISH', topic, table.concat(ARGV, '', 2))
if not KEYS[2] then
  return receivers
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  return false
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. string.format('%d', now), '+inf')
