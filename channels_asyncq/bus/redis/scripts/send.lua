-- Log and publish envelopes, each in an entry of its own; for a group, return the normal channels that are members.
-- KEYS: the partition's log, and for a group its members. ARGV: topic; empty, or the header that is logged in place
-- of the one envelope, which is too large; envelopes. MOST_ENTRIES, MOST_BYTES and IS_REQUIRED are put in when this
-- is loaded.
-- Subscribers get the first envelope's version byte, #, the last entry's id, a space and the envelopes. There is no
-- id if the server refuses to write: they are published all the same, unless logging IS_REQUIRED.
local topic, header = ARGV[1], ARGV[2]
local id
for number = 3, #ARGV do
  local entry, kind, most = ARGV[number], 'e', 'MOST_ENTRIES'
  if header ~= '' then
    entry, kind = header, 'h'
  end
  if #entry > 1024 then
    most = string.format('%d', math.min(MOST_ENTRIES, math.floor(MOST_BYTES / #entry)))
  end
  id = redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', most, '*', 't', topic, kind, entry)
  if type(id) == 'table' then
    -- It is the first: what refuses none at the beginning of a script refuses none later.
    -- (Redis 6 does not count what it refuses within a script. There the words begin with the script's line.)
    local code = string.match(id.err, '^%u+') or ''
    if IS_REQUIRED == 1 or not string.find(' OOM MISCONF NOREPLICAS ', ' ' .. code .. ' ', 1, true) then
      return id
    end
    -- Who reconnects learns of it by the server's count of such errors: no message without one.
    local counts = redis.pcall('INFO', 'errorstats')
    if type(counts) == 'table' or not string.find(counts, 'errorstat_' .. code .. ':', 1, true) then
      return id
    end
    id = ''
    break
  end
end
-- One new string, as Lua looks at every byte of each.
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
