-- Renew a session's lease, and tell it, on its own topic, where the logs end: what it gets before that has arrived.
-- Trim them by age.
-- KEYS: those of lease.lua, the logs. ARGV: those of lease.lua, topic, number of the fence, seconds to keep, seconds
-- after which an unused log expires. Returns what lease.lua does; without the lease there is no fence.
{lease.lua}
local oldest = digits((time[1] - ARGV[10]) * 1000)
local told = { ARGV[9], digits(now) }
for i = 4, #KEYS do
  local log = KEYS[i]
  if redis.call('EXISTS', log) == 0 then
    -- A position is always the id of an entry.
    redis.call('XADD', log, '*', 'begin', '')
  end
  redis.call('XTRIM', log, 'MINID', '~', oldest)
  redis.call('EXPIRE', log, ARGV[11])
  local info = redis.call('XINFO', 'STREAM', log)
  for j = 1, #info, 2 do
    if info[j] == 'last-generated-id' then
      told[#told + 1] = info[j + 1]
    end
  end
end
redis.call('PUBLISH', ARGV[8], table.concat(told, ' '))
return answer
