-- The epoch of a log: a text that names its history. A place in a log counts in one epoch only.
-- `epoch_of(key, server, candidate, lives)` returns the epoch of the log with this key, and begins another one where
-- messages may be missing from the log: the key is gone, the server is another one or was started again (its run_id
-- differs), or it has refused writes since. Where the server does not tell, each call begins another one. An epoch
-- that cannot be stored is not returned again.
local refusals = '-'
local words = redis.pcall('INFO', 'errorstats')
if type(words) == 'string' then
  local count = 0
  for _, name in ipairs({ 'OOM', 'MISCONF', 'NOREPLICAS' }) do
    count = count + (string.match(words, 'errorstat_' .. name .. ':count=(%d+)') or 0)
  end
  refusals = string.format('%d', count)
end
local function epoch_of(key, server, candidate, lives)
  local known = redis.call('HMGET', key, 'epoch', 'server', 'refusals')
  local epoch = known[1]
  if not epoch or server == '' or refusals == '-' or known[2] ~= server or known[3] ~= refusals then
    epoch = candidate
    redis.pcall('HSET', key, 'epoch', epoch, 'server', server, 'refusals', refusals)
  end
  redis.pcall('EXPIRE', key, lives)
  return epoch
end
-- Returns the id of the last entry of a log; begins the log, so that there is one.
local function end_of(log)
  if redis.call('EXISTS', log) == 0 then
    redis.pcall('XADD', log, '*', 'begin', '')
  end
  local info = redis.pcall('XINFO', 'STREAM', log)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      return info[i + 1]
    end
  end
  return '0-0'
end
