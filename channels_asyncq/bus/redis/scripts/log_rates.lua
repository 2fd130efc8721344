-- Count the latest entries of a log by topic.
-- KEYS: the log. ARGV: the age in ms up to which they count; the most entries that are looked at.
-- Returns the ms in which these entries were added, then each topic and its number of entries.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local page = redis.call('XREVRANGE', KEYS[1], '+', string.format('%d', math.max(0, now - ARGV[1])), 'COUNT', ARGV[2])
local span, counts, topics = tonumber(ARGV[1]), {}, {}
local is_cut = #page == tonumber(ARGV[2])
if #page > 0 and not is_cut then
  -- A log that is trimmed may have had more entries in this time.
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  local length, added = 0, nil
  for i = 1, #info, 2 do
    if info[i] == 'length' then
      length = info[i + 1]
    elseif info[i] == 'entries-added' then
      added = info[i + 1]
    end
  end
  is_cut = length == #page and length ~= added
end
if is_cut then
  span = math.max(1, now - string.match(page[#page][1], '^%d+'))
end
for _, entry in ipairs(page) do
  if entry[2][1] == 't' then
    local topic = entry[2][2]
    if not counts[topic] then
      topics[#topics + 1] = topic
    end
    counts[topic] = (counts[topic] or 0) + 1
  end
end
local answer = { span }
for _, topic in ipairs(topics) do
  answer[#answer + 1] = topic
  answer[#answer + 1] = counts[topic]
end
return answer
