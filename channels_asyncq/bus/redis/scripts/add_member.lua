-- Make a normal channel a member of a group, or renew its membership, and forget the lapsed ones.
-- KEYS: the group's members. ARGV: channel, for how long in ms.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- First what needs memory: a server that has none refuses it, and does not once a script has written.
redis.call('ZADD', KEYS[1], string.format('%d', now + ARGV[2]), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%d', now))
-- Others may be members for longer.
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
