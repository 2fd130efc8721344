-- Put the item that a session claimed with this number back at the head of its channel.
-- KEYS: the list; the session's taken key. ARGV: the number; the expiry in ms.
-- Returns 1, or 0 if the number holds no item or the item has expired. In each case the number is used up: a pop of a
-- lost connection that executes later must not claim an item with it.
-- No key is deleted before its last use: while a slot of a cluster migrates, a script cannot use a key that is gone.
local held = redis.call('HMGET', KEYS[2], 'number', 'item')
local last = tonumber(held[1]) or 0
if last > tonumber(ARGV[1]) then
  return 0
end
redis.call('HSET', KEYS[2], 'number', ARGV[1])
redis.call('HDEL', KEYS[2], 'item')
redis.call('PEXPIRE', KEYS[2], ARGV[2])
if last < tonumber(ARGV[1]) or not held[2] then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local left = (tonumber(string.sub(held[2], 1, 13)) or 0) - now
if left <= 0 then
  return 0
end
redis.call('LPUSH', KEYS[1], held[2])
if redis.call('PTTL', KEYS[1]) < left then
  redis.call('PEXPIRE', KEYS[1], left)
end
redis.call('PUBLISH', KEYS[1], '+')
return 1
