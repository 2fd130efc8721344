-- Log and publish an envelope; for a group, return the normal channels that are members.
-- KEYS: the partition's log, and for a group its members. ARGV: topic, envelope, the log's most entries, its most
-- bytes, the largest envelope that enters it whole, the length of the envelope's header.
-- Subscribers get the envelope's version byte, #, the entry's id, a space and the envelope.
local size = #ARGV[2]
local most = tonumber(ARGV[3])
local id
if size <= tonumber(ARGV[5]) then
  if size > 1024 then
    most = math.min(most, math.floor(ARGV[4] / size))
  end
  id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', most, '*', 't', ARGV[1], 'e', ARGV[2])
else
  id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', most, '*', 't', ARGV[1], 'h', string.sub(ARGV[2], 1, ARGV[6]))
end
local receivers = redis.call('PUBLISH', ARGV[1], string.sub(ARGV[2], 1, 1) .. '#' .. id .. ' ' .. ARGV[2])
if not KEYS[2] then
  return receivers
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  return false
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. string.format('%d', now), '+inf')
