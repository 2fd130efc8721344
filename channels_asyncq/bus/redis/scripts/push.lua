-- Append an item to a normal channel.
-- KEYS: the list, which is also the topic of its wake-ups; the numbers that were accepted from this session in this
-- partition; the sessions whose senders wait for a place.
-- ARGV: the item; the capacity; the expiry in ms; the item's number among the session's pushes in the partition. For
-- a sender that waits also its session, the ms that it has waited, and the ms for which its place in the line is
-- kept.
-- Returns 1 if the item was accepted, now or before, or 0 if the channel is full. A stored item begins with the 13
-- digits of its expiry, in ms of TIME.
-- The numbers are stored as "<highest>" or "<highest>,<missing>,...,": the missing numbers are below the highest and
-- were not accepted. A session has at most 1024 unanswered pushes, so older missing numbers are not needed.
local taken = redis.call('GET', KEYS[2]) or '0'
local number = tonumber(ARGV[4])
local highest = tonumber(string.match(taken, '^%d+'))
local first = string.find(taken, ',', 1, true)
local missing = first and string.sub(taken, first) or ','
local place = nil
if number <= highest then
  place = string.find(missing, ',' .. ARGV[4] .. ',', 1, true)
  if not place then
    return 1
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local length, expired = redis.call('LLEN', KEYS[1]), 0
local head = redis.call('LINDEX', KEYS[1], 0)
while head and (tonumber(string.sub(head, 1, 13)) or math.huge) <= now do
  expired = expired + 1
  head = redis.call('LINDEX', KEYS[1], expired)
end
if expired > 0 and expired < length then
  redis.call('LTRIM', KEYS[1], expired, -1)
  length, expired = length - expired, 0
end
-- Where all have expired, they stay until there is another item: without an item there is no list, and while a slot of
-- a cluster migrates, a script cannot use a key that is gone.
local free = tonumber(ARGV[2]) - (length - expired)
local is_known = false
-- A sender that waits comes after those that waited before it. Any other sender leaves the last place to them.
if ARGV[5] or free == 1 then
  local since = ARGV[5] and string.format('%013d', now - ARGV[6])
  local waiting = redis.call('HGETALL', KEYS[3])
  for i = 1, #waiting, 2 do
    local session, came, ends = waiting[i], string.match(waiting[i + 1], '^(%d+),(%d+)$')
    if session == ARGV[5] then
      is_known = true
    elseif tonumber(ends) <= now then
      redis.pcall('HDEL', KEYS[3], session)
    elseif not since or came < since or (came == since and session < ARGV[5]) then
      free = free - 1
    end
  end
  if free <= 0 and ARGV[5] then
    -- A server without memory refuses this. Then the sender waits without a place in the line.
    redis.pcall('HSET', KEYS[3], ARGV[5], since .. ',' .. string.format('%013d', now + ARGV[7]))
    redis.pcall('PEXPIRE', KEYS[3], ARGV[7])
  end
end
if free <= 0 then
  return 0
end
if is_known then
  redis.call('HDEL', KEYS[3], ARGV[5])
end
if place then
  missing = string.sub(missing, 1, place) .. string.sub(missing, place + #ARGV[4] + 2)
else
  local skipped = {missing}
  for between = math.max(highest + 1, number - 1024), number - 1 do
    skipped[#skipped + 1] = between .. ','
  end
  missing = table.concat(skipped)
  highest = number
  local excess = #missing - 1024 * (#ARGV[4] + 1)
  if excess > 0 then
    local from = string.find(missing, ',', excess, true)
    missing = string.sub(missing, from)
  end
end
redis.call('RPUSH', KEYS[1], string.format('%013d', now + ARGV[3]) .. ARGV[1])
if expired > 0 then
  redis.call('LTRIM', KEYS[1], expired, -1)
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('SET', KEYS[2], missing == ',' and highest or highest .. missing, 'EX', 900)
redis.call('PUBLISH', KEYS[1], '+')
return 1
