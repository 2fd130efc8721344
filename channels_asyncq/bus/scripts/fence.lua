-- Tell a session, on its own topic, where the logs end: what it gets before that has arrived. Trim them by age.
-- KEYS: the logs. ARGV: topic, number of the fence, seconds to keep, seconds after which an unused log expires.
local time = redis.call('TIME')
local oldest = string.format('%d', (time[1] - ARGV[3]) * 1000)
local ends = { ARGV[2] }
for i, log in ipairs(KEYS) do
  if redis.call('EXISTS', log) == 0 then
    -- A position is always the id of an entry.
    redis.call('XADD', log, '*', 'begin', '')
  end
  redis.call('XTRIM', log, 'MINID', '~', oldest)
  redis.call('EXPIRE', log, ARGV[4])
  local info = redis.call('XINFO', 'STREAM', log)
  for j = 1, #info, 2 do
    if info[j] == 'last-generated-id' then
      ends[i + 1] = info[j + 1]
    end
  end
end
redis.call('PUBLISH', ARGV[1], table.concat(ends, ' '))
return 1
