-- Take or renew a session's lease, which publishes its layout. A new lease needs compatible layouts of all others.
-- KEYS: the layouts in use, scored with the time in ms at which the last lease of each ends; the sessions with this
-- layout, scored likewise; the past of the namespace. ARGV: the layout; the session, with its process; the duration of
-- the lease in ms; the compatible layouts that the session knows, one a line; the settings that decide in which log a
-- message is; "1" if this session logs its messages; ms for which the past is kept.
-- Returns "in"; "out" if there is a layout that the session does not know; or the error with which the server refuses
-- to write. Then the end of the gap: messages up to this time in ms may be in no log, or in logs that others do not
-- read. Then the end of the time in which messages may be missing from histories, likewise. Then the layouts in use.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function digits(number)
  return string.format('%d', number)
end
local function histories_of(layout)
  return string.match(layout, '"histories": "(%x*)"') or ''
end
local past = redis.call('HMGET', KEYS[3], 'place', 'gap', 'kept', 'unkept')
local gap, unkept = tonumber(past[2] or '0'), tonumber(past[4] or '0')
local answer = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. digits(now), '+inf')
if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[2]) or '0') <= now then
  local compatible = '\n' .. ARGV[1] .. '\n' .. ARGV[4] .. '\n'
  for _, layout in ipairs(answer) do
    if not string.find(compatible, '\n' .. layout .. '\n', 1, true) then
      table.insert(answer, 1, digits(unkept))
      table.insert(answer, 1, digits(gap))
      table.insert(answer, 1, 'out')
      return answer
    end
  end
end
local ends = digits(now + ARGV[3])
local taken = redis.pcall('ZADD', KEYS[2], ends, ARGV[2])
local state = 'in'
if type(taken) == 'table' then
  -- A server without memory or disk still serves present sessions. (Redis 6 puts the line of the script before the
  -- words of an error, and the end of a line after them.)
  state = string.match(taken.err, '%u%u+ [^\r\n]*') or taken.err
else
  -- Sessions whose lease has run out stay in the list for an hour: they may be stopped, and a survey names them.
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', digits(now - 3600000))
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', digits(now))
  local is_new = redis.call('ZADD', KEYS[1], ends, ARGV[1]) == 1
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  redis.call('PEXPIRE', KEYS[2], digits(ARGV[3] + 3600000))
  if past[1] and past[1] ~= ARGV[5] then
    gap = math.max(gap, now)
  end
  if ARGV[6] ~= '1' then
    gap = math.max(gap, now + ARGV[3])
  end
  redis.call('HSET', KEYS[3], 'place', ARGV[5], 'gap', digits(gap))
  local histories = histories_of(ARGV[1])
  if histories ~= '' or past[3] then
    -- The past names the histories that a session kept last, and when it said so. Messages of a time in which nobody
    -- did may be missing, and those of sessions with other histories, until their leases have ended.
    local last, at = string.match(past[3] or '', '^(%x*) (%d+)$')
    local has_others = last and last ~= histories
    for _, layout in ipairs(answer) do
      has_others = has_others or histories_of(layout) ~= histories
    end
    if has_others then
      unkept = math.max(unkept, now + ARGV[3])
    elseif not last or now - at > tonumber(ARGV[3]) then
      unkept = math.max(unkept, now)
    end
    redis.call('HSET', KEYS[3], 'kept', histories .. ' ' .. digits(now), 'unkept', digits(unkept))
  end
  if redis.call('PTTL', KEYS[3]) < tonumber(ARGV[7]) then
    redis.call('PEXPIRE', KEYS[3], ARGV[7])
  end
  if is_new then
    redis.call('PUBLISH', KEYS[1], 'look')
  end
end
table.insert(answer, 1, digits(unkept))
table.insert(answer, 1, digits(gap))
table.insert(answer, 1, state)
