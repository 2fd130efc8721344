-- Make a normal channel a member of a group, or renew its membership, and delete the expired memberships.
-- KEYS: the group's members. ARGV: the channel; the duration in ms.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- ZADD first, as it needs memory: a server without memory refuses it, but not after another write of the script.
redis.call('ZADD', KEYS[1], string.format('%d', now + ARGV[2]), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%d', now))
-- Other memberships may last longer.
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
