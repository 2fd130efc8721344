-- Renew a session's lease, and tell it, on its own topic, where the logs end: what it gets before that has arrived.
-- Trim them by age, and say what was found of the server.
-- KEYS: those of lease.lua; the marks of the host's partitions; and their logs, if there are any. ARGV: those of
-- lease.lua, topic, number of the fence, seconds to keep, seconds after which an unused log expires, how many marks, ms
-- for which a new mark lives. Returns what lease.lua does; without the lease there is no fence.
-- The lines of what is published: number and ends; time and when each mark expires, both in ms; why the server refuses
-- to write, or nothing; how often it has refused to, and how many keys it has evicted, `-` where it does not say.
{lease.lua}
local words = state == 'in' and '' or state
local code = string.match(words, '%u+')
local oldest = digits((time[1] - ARGV[10]) * 1000)
local logs = 4 + ARGV[12]
local marks = { digits(now) }
for i = 4, logs - 1 do
  -- PTTL is no use of a key to the server: when it evicts what was not used for long, the marks go first.
  local left = redis.call('PTTL', KEYS[i])
  if left < 0 and words == '' then
    left = tonumber(ARGV[13])
    redis.call('SET', KEYS[i], '', 'PX', left)
  end
  marks[#marks + 1] = left < 0 and '-' or digits(now + left)
end
local ends = { ARGV[9] }
for i = logs, #KEYS do
  local log = KEYS[i]
  if words == '' and redis.call('EXISTS', log) == 0 then
    -- A position is always the id of an entry.
    redis.call('XADD', log, '*', 'begin', '')
  end
  if words == '' or code == 'OOM' then
    redis.call('XTRIM', log, 'MINID', '~', oldest)
    redis.call('EXPIRE', log, ARGV[11])
  end
  local last = '0-0'
  local info = redis.pcall('XINFO', 'STREAM', log)
  for j = 1, #info, 2 do
    if info[j] == 'last-generated-id' then
      last = info[j + 1]
    end
  end
  ends[#ends + 1] = last
end
local refused, evicted = '-', '-'
local errors = redis.pcall('INFO', 'errorstats')
if type(errors) == 'string' and string.find(errors, '# Errorstats', 1, true) then
  local count = 0
  for _, name in ipairs({ 'OOM', 'MISCONF', 'NOREPLICAS' }) do
    count = count + (string.match(errors, 'errorstat_' .. name .. ':count=(%d+)') or 0)
  end
  refused = digits(count)
end
local stats = redis.pcall('INFO', 'stats')
if type(stats) == 'string' then
  evicted = string.match(stats, 'evicted_keys:(%d+)') or '-'
end
local lines = { table.concat(ends, ' '), table.concat(marks, ' '), words, refused .. ' ' .. evicted }
redis.call('PUBLISH', ARGV[8], table.concat(lines, '\n'))
return answer
