-- Take the oldest item of a normal channel, under a number of the node that asks.
-- KEYS: the list, the node's taken key. ARGV: number, expiry in ms.
-- Returns the item or nil. The same number gets the same item again; a higher one acknowledges it; a lower one is a
-- command of a connection that is dead and was answered on another one since: it changes nothing.
local held = redis.call('HMGET', KEYS[2], 'number', 'item')
if held[1] == ARGV[1] then
  return held[2]
end
if held[1] then
  if tonumber(held[1]) > tonumber(ARGV[1]) then
    return false
  end
  redis.call('DEL', KEYS[2])
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local item = redis.call('LPOP', KEYS[1])
while item and (tonumber(string.sub(item, 1, 13)) or math.huge) <= now do
  item = redis.call('LPOP', KEYS[1])
end
redis.call('HSET', KEYS[2], 'number', ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
if not item then
  return false
end
redis.call('HSET', KEYS[2], 'item', item)
return item
