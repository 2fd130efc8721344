-- Publish to a group and return its normal channels; the sender pushes one copy to each of these.
-- KEYS: the group's members, scored with the time in ms at which their membership ends. ARGV: the topic; the
-- envelope.
redis.call('PUBLISH', ARGV[1], ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 0 then
  return false
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%d', now), '+inf')
