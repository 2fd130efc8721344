-- Measure some items of a normal channel, and change nothing.
-- KEYS: the list. ARGV: the index of the first item; the number of items.
-- Returns the length of the list, the time in ms, how many of these items have expired, the bytes of the others, and
-- the expiry in ms of the first of the others, or nothing.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local expired, bytes, first = 0, 0, ''
for index = ARGV[1], ARGV[1] + ARGV[2] - 1 do
  local item = redis.call('LINDEX', KEYS[1], index)
  if not item then
    break
  end
  if (tonumber(string.sub(item, 1, 13)) or math.huge) <= now then
    expired = expired + 1
  else
    bytes = bytes + #item - 13
    if first == '' then
      first = string.sub(item, 1, 13)
    end
  end
end
return { redis.call('LLEN', KEYS[1]), string.format('%d', now), expired, bytes, first }
