-- Return the end of the log of one partition of a cluster, and findings about the server. A fence is published behind
-- the answers about all partitions of a node. On a full round, trim the log by age.
-- KEYS: the mark of the partition; its log, if there is one. ARGV: "1" for a full round; seconds to keep entries;
-- seconds after which an unused log expires; the life of a new mark, and a random addition to it at most, in ms; "1"
-- to look whether the server takes writes, and what it counts.
-- Returns the time in ms; the end; the expiry of the mark in ms; the error with which the server refuses to write, or
-- nothing; how often it has refused to write, and how many keys it has evicted, `-` where the server does not report
-- it.
local time = redis.call('TIME')
local function digits(number)
  return string.format('%d', number)
end
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local words, code = '', nil
-- PTTL does not count as a use of a key: if the server evicts the least recently used keys, the marks go first.
local left = redis.call('PTTL', KEYS[1])
if left < 0 or ARGV[6] == '1' then
  local lives = left
  if left < 0 then
    -- The microseconds of the time are as good as random.
    lives = ARGV[4] + math.floor(ARGV[5] * time[2] / 1000000)
  end
  local taken = redis.pcall('SET', KEYS[1], '', 'PX', digits(lives))
  if taken.err then
    words = string.match(taken.err, '%u%u+ [^\r\n]*') or taken.err
    code = string.match(words, '%u+')
  else
    left = lives
  end
end
local mark = left < 0 and '-' or digits(now + left)
local last = ''
if KEYS[2] then
  last = '0-0'
  if ARGV[1] == '1' and words == '' and redis.call('EXISTS', KEYS[2]) == 0 then
    -- So that there is an entry: its id is the position.
    redis.call('XADD', KEYS[2], '*', 'begin', '')
  end
  local info = redis.pcall('XINFO', 'STREAM', KEYS[2])
  for j = 1, #info, 2 do
    if info[j] == 'last-generated-id' then
      last = info[j + 1]
    end
  end
  if ARGV[1] == '1' and (words == '' or code == 'OOM') then
    -- Not the last entry, however old: with it, the log shows that nothing is missing behind it.
    local oldest = digits((time[1] - ARGV[2]) * 1000)
    local keep_from = last
    if tonumber(oldest) < tonumber(string.match(last, '^%d+')) then
      keep_from = oldest
    end
    redis.call('XTRIM', KEYS[2], 'MINID', '~', keep_from)
    redis.call('EXPIRE', KEYS[2], ARGV[3])
  end
end
local refused, evicted = '-', '-'
if ARGV[6] == '1' then
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
end
return { digits(now), last, mark, words, refused .. ' ' .. evicted }
