-- Measure a page of a log, and change nothing. The entry with which a log begins has no message, and is left out.
-- KEYS: the log. ARGV: the first id; the number of entries of a page.
-- Returns the number of entries in the page, and the id of the last one, or nothing; how many of them have messages,
-- their bytes, the bytes of the largest message; and the ids of the first and the last of those, or nothing.
local size, count, bytes, largest, first, last = 0, 0, 0, 0, '', ''
local page = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
for _, entry in ipairs(page) do
  local words = entry[2]
  if words[1] ~= 'begin' then
    count = count + 1
    for _, word in ipairs(words) do
      bytes = bytes + #word
    end
    largest = math.max(largest, #words[#words])
    if first == '' then
      first = entry[1]
    end
    last = entry[1]
  end
end
return { #page, #page > 0 and page[#page][1] or '', count, bytes, largest, first, last }
