-- Claim the oldest item of a normal channel, with a number of the session that asks.
-- KEYS: the list; the session's taken key. ARGV: the number; the expiry in ms; the oldest and the newest wire version
-- that the session reads. Items of other versions stay in the list, for sessions that read them.
-- Returns the item or nil. The same number gets the same answer again. A higher number acknowledges that item. A
-- lower number is a command of a lost connection that executes late, and claims nothing.
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
redis.call('DEL', KEYS[2])
local left = {}
local item = redis.call('LPOP', KEYS[1])
while item do
  if (tonumber(string.sub(item, 1, 13)) or math.huge) > now then
    -- An item without a version is not a message: it is claimed, and the session drops it.
    local version = string.byte(item, 14) or 0
    if version < 1 or version > 31 or (version >= tonumber(ARGV[3]) and version <= tonumber(ARGV[4])) then
      break
    end
    left[#left + 1] = item
  end
  item = redis.call('LPOP', KEYS[1])
end
if #left > 0 then
  for i = #left, 1, -1 do
    redis.call('LPUSH', KEYS[1], left[i])
  end
  if redis.call('PTTL', KEYS[1]) < 0 then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
  end
end
if item then
  redis.call('HSET', KEYS[2], 'number', ARGV[1], 'item', item)
else
  redis.call('HSET', KEYS[2], 'number', ARGV[1])
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return item
