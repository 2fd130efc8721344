-- Renew a session's lease, and publish the ends of the logs on the session's own topic: the messages up to these ends
-- arrive before the fence. Trim the logs by age, and publish findings about the server.
-- KEYS: those of lease.lua; the marks of the host's partitions; their logs, if there are any. ARGV: those of
-- lease.lua; the topic; seconds to keep entries; seconds after which an unused log expires; the number of marks; the
-- life of a new mark, and a random addition to it at most, in ms; the number of the fence. Returns the answer of
-- lease.lua. Without the lease, no fence is published.
-- A fence has five lines: its number and the time in ms; the ends; the expiry of each mark, in ms; the error with
-- which the server refuses to write, or nothing; how often it has refused to write, and how many keys it has evicted,
-- `-` where the server does not report it. All but the first are the same in most fences.
{lease.lua}
local words = state == 'in' and '' or state
local code = string.match(words, '%u+')
local oldest = digits((time[1] - ARGV[9]) * 1000)
local logs = 4 + ARGV[11]
local marks = {}
for i = 4, logs - 1 do
  -- PTTL does not count as a use of a key: if the server evicts the least recently used keys, the marks go first.
  local left = redis.call('PTTL', KEYS[i])
  if left < 0 and words == '' then
    -- The microseconds of the time are as good as random.
    left = ARGV[12] + math.floor(ARGV[13] * time[2] / 1000000)
    redis.call('SET', KEYS[i], '', 'PX', digits(left))
  end
  marks[#marks + 1] = left < 0 and '-' or digits(now + left)
end
local ends = {}
for i = logs, #KEYS do
  local log = KEYS[i]
  if words == '' and redis.call('EXISTS', log) == 0 then
    -- So that there is an entry: its id is the position.
    redis.call('XADD', log, '*', 'begin', '')
  end
  local last = '0-0'
  local info = redis.pcall('XINFO', 'STREAM', log)
  for j = 1, #info, 2 do
    if info[j] == 'last-generated-id' then
      last = info[j + 1]
    end
  end
  if words == '' or code == 'OOM' then
    -- Not the last entry, however old: with it, the log shows that nothing is missing behind it.
    local keep_from = last
    if tonumber(oldest) < tonumber(string.match(last, '^%d+')) then
      keep_from = oldest
    end
    redis.call('XTRIM', log, 'MINID', '~', keep_from)
    redis.call('EXPIRE', log, ARGV[10])
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
local lines = { ARGV[14] .. ' ' .. digits(now), table.concat(ends, ' '), table.concat(marks, ' '), words, refused .. ' ' .. evicted }
redis.call('PUBLISH', ARGV[8], table.concat(lines, '\n'))
return answer
