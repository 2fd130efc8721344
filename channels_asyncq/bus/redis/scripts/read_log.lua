-- Read a page of a log, without the entries of topics that are not wanted.
-- KEYS: the log. ARGV: the first id, inclusive; the number of entries of a page; the wanted topics, none for all.
-- Returns the highest id that the log has ever given to an entry, the server's time in ms, how many entries the page
-- has, the ids of its first and its last one, and those that are wanted. A single entry is returned in any case.
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
local page = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
if #page == 0 then
  return { last, now, 0, '', '', page }
end
local entries = page
-- Mostly nothing was missed: then the page has the entry of the position only.
if ARGV[3] and #page > 1 then
  local is_wanted = {}
  for j = 3, #ARGV do
    is_wanted[ARGV[j]] = true
  end
  entries = {}
  for _, entry in ipairs(page) do
    if is_wanted[entry[2][2]] then
      entries[#entries + 1] = entry
    end
  end
end
return { last, now, #page, page[1][1], page[#page][1], entries }
