-- Return a page of a group's history, the newest entry first.
-- KEYS: the history. ARGV: the highest and the lowest id, inclusive; the number of entries of a page; "1" to look at the
-- whole history.
-- Returns the server's time in ms and the entries. Then, of the whole history, the id of its first entry, empty without
-- entries; and whether every entry that was ever added is there, except those of a history that has expired.
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local entries = redis.call('XREVRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[3])
if ARGV[4] ~= '1' then
  return { now, entries }
end
local first, length, added = '', 0, 0
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if not info.err then
  -- A server before version 7 does not count what was added.
  added = nil
  for i = 1, #info, 2 do
    if info[i] == 'length' then
      length = info[i + 1]
    elseif info[i] == 'entries-added' then
      added = info[i + 1]
    elseif info[i] == 'first-entry' and info[i + 1] then
      first = info[i + 1][1]
    end
  end
end
-- A history that was evicted is gone like one that has expired.
local function figure(section, name)
  local words = redis.pcall('INFO', section)
  return type(words) == 'string' and string.match(words, name .. ':([^\r\n]*)') or ''
end
local evicts = figure('memory', 'maxmemory') ~= '0' and figure('memory', 'maxmemory_policy') ~= 'noeviction'
local is_whole = length == added and not evicts and figure('stats', 'evicted_keys') == '0'
return { now, entries, first, is_whole and 1 or 0 }
