-- Claim the oldest item of a normal channel, with a number of the session that asks.
-- KEYS: the list; the session's taken key. ARGV: the number; the expiry in ms; the oldest and the newest wire version
-- that the session reads. Items of other versions stay in the list, for sessions that read them.
-- Returns the item or nil. The same number gets the same answer again. A higher number acknowledges that item. A
-- lower number is a command of a lost connection that executes late, and claims nothing.
-- No key is deleted before its last use: while a slot of a cluster migrates, a script cannot use a key that is gone.
local held = redis.call('HMGET', KEYS[2], 'number', 'item')
local last = tonumber(held[1]) or 0
if last == tonumber(ARGV[1]) then
  return held[2]
end
if last > tonumber(ARGV[1]) then
  return false
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- Items before this index stay.
local at = 0
local item = redis.call('LINDEX', KEYS[1], 0)
local length = item and redis.call('LLEN', KEYS[1]) or 0
while item do
  local is_claimed, is_over = false, (tonumber(string.sub(item, 1, 13)) or math.huge) <= now
  if not is_over then
    -- An item without a version is not a message: it is claimed, and the session drops it.
    local version = string.byte(item, 14) or 0
    is_claimed = version < 1 or version > 31 or (version >= tonumber(ARGV[3]) and version <= tonumber(ARGV[4]))
  end
  if not is_over and not is_claimed then
    at = at + 1
  else
    if at == 0 then
      redis.call('LPOP', KEYS[1])
    else
      redis.call('LSET', KEYS[1], at, '')
      redis.call('LREM', KEYS[1], 1, '')
    end
    length = length - 1
  end
  if is_claimed then
    break
  end
  item = at < length and redis.call('LINDEX', KEYS[1], at)
end
if item then
  redis.call('HSET', KEYS[2], 'number', ARGV[1], 'item', item)
else
  redis.call('HSET', KEYS[2], 'number', ARGV[1])
  redis.call('HDEL', KEYS[2], 'item')
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return item
