-- Log and publish an envelope; for a group, return the normal channels that are members.
-- KEYS: the partition's log, and for a group its members. ARGV: topic, envelope, and for one that is too large to be
-- logged whole the length of its header. MOST_ENTRIES and MOST_BYTES are put in when the script is loaded.
-- Subscribers get the envelope's version byte, #, the entry's id, a space and the envelope.
local topic, envelope = ARGV[1], ARGV[2]
local most = 'MOST_ENTRIES'
if #envelope > 1024 then
  most = string.format('%d', math.min(MOST_ENTRIES, math.floor(MOST_BYTES / #envelope)))
end
local id
if ARGV[3] then
  id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', most, '*', 't', topic, 'h', string.sub(envelope, 1, ARGV[3]))
else
  id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', most, '*', 't', topic, 'e', envelope)
end
local receivers = redis.call('PUBLISH', topic, string.sub(envelope, 1, 1) .. '#' .. id .. ' ' .. envelope)
if not KEYS[2] then
  return receivers
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  return false
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. string.format('%d', now), '+inf')
