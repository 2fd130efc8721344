-- Append an item to a normal channel.
-- KEYS: the list, which is also the topic of its wake-ups, and the numbers seen on it. ARGV: item, capacity, expiry in
-- ms, the sender's node, its sequence number.
-- Returns 1, also when this number was taken in before, or 0 when the channel is full. An item begins with the 13
-- digits of its expiry, in ms of TIME.
local seen = redis.call('HGET', KEYS[2], ARGV[4])
if seen and tonumber(seen) >= tonumber(ARGV[5]) then
  return 1
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local head = redis.call('LINDEX', KEYS[1], 0)
while head and (tonumber(string.sub(head, 1, 13)) or math.huge) <= now do
  redis.call('LPOP', KEYS[1])
  head = redis.call('LINDEX', KEYS[1], 0)
end
if redis.call('LLEN', KEYS[1]) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('RPUSH', KEYS[1], string.format('%013d', now + ARGV[3]) .. ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('HSET', KEYS[2], ARGV[4], ARGV[5])
redis.call('EXPIRE', KEYS[2], 900)
redis.call('PUBLISH', KEYS[1], '+')
return 1
