-- Return the end of the log of one partition of a cluster, and a page of its entries. Bring the record of its epoch up
-- to date, if the log has moved here with all its messages.
-- KEYS: the log; the key of its epoch. ARGV: a random text, for a new epoch; seconds for which an epoch is kept; "1" to
-- begin another epoch if the record names another server; the number of entries of a page, -1 to bring the record up
-- to date only; the first id, inclusive; then, if the caller knows that this server has all messages of other ones: the
-- identity of this server, how often it had refused to write before the log came here, and for each of the others its
-- identity, and how often it had refused to write when the log left it.
-- Returns the epoch, the id of the last entry, the identity of the server, and the entries; an empty epoch, and the
-- identity in the record, if that is of another server.
{epoch.lua}
local server, count = '', tonumber(ARGV[4])
local replication = redis.pcall('INFO', 'replication')
if type(replication) == 'string' then
  server = string.match(replication, 'master_replid:(%x+)') or ''
end
local known = redis.call('HMGET', KEYS[2], 'server', 'refusals')
local is_of_another = known[1] and server ~= '' and refusals ~= '-' and known[1] ~= server
if is_of_another and ARGV[6] == server and ARGV[7] == refusals then
  for i = 8, #ARGV, 2 do
    if known[1] == ARGV[i] and known[2] == ARGV[i + 1] then
      redis.pcall('HSET', KEYS[2], 'server', server, 'refusals', refusals)
      is_of_another = false
    end
  end
end
if count < 0 then
  return false
end
if is_of_another and ARGV[3] ~= '1' then
  return { '', known[1] }
end
local epoch = epoch_of(KEYS[2], server, ARGV[1], ARGV[2])
local entries = {}
if count > 0 then
  entries = redis.call('XRANGE', KEYS[1], ARGV[5], '+', 'COUNT', ARGV[4])
end
return { epoch, end_of(KEYS[1]), server, entries }
