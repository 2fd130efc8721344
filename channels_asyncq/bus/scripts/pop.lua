-- Take the oldest item of a normal channel, under a number of the node that asks.
-- KEYS: the list, the node's taken key. ARGV: number, expiry in ms.
-- Returns the item or nil. The same number gets the same answer again; a higher one acknowledges it; a lower one
-- is from a connection that was lost, executed late, and takes nothing.
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
local item = redis.call('LPOP', KEYS[1])
while item and (tonumber(string.sub(item, 1, 13)) or math.huge) <= now do
  item = redis.call('LPOP', KEYS[1])
end
if item then
  redis.call('HSET', KEYS[2], 'number', ARGV[1], 'item', item)
else
  redis.call('HSET', KEYS[2], 'number', ARGV[1])
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return item
