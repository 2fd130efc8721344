-- Read a page of a log.
-- KEYS: the log. ARGV: the first id, inclusive; the number of entries.
-- Returns the highest id that the log has ever given to an entry, the server's time in ms, and the entries.
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local last = '0-0'
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for j = 1, #info, 2 do
    if info[j] == 'last-generated-id' then
      last = info[j + 1]
    end
  end
end
return { last, now, redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2]) }
