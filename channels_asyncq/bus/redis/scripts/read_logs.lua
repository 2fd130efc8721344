-- Read a page of each of some logs. With the last page, publish a marker on the session's own topic: the messages that
-- were published before it have arrived before it, and are in the pages. The messages behind it are not.
-- KEYS: the logs, each followed by the key of its epoch. ARGV: the run_id of the server; a random text, for new
-- epochs; seconds for which an epoch is kept; the number of entries of a page; the topic; the marker; for each log the
-- first id, inclusive.
-- Returns whether this was the last page, and for each log its epoch, the id of its last entry, and the entries.
{epoch.lua}
local reply = { 1 }
for i = 1, #KEYS, 2 do
  local entries = redis.call('XRANGE', KEYS[i], ARGV[6 + (i + 1) / 2], '+', 'COUNT', ARGV[4])
  if #entries >= tonumber(ARGV[4]) then
    reply[1] = 0
  end
  reply[#reply + 1] = { epoch_of(KEYS[i + 1], ARGV[1], ARGV[2], ARGV[3]), end_of(KEYS[i]), entries }
end
if reply[1] == 1 then
  redis.call('PUBLISH', ARGV[5], ARGV[6])
end
return reply
