-- Return the epoch and the id of the last entry of each log.
-- KEYS: the logs, each followed by the key of its epoch. ARGV: the run_id of the server; a random text, for new
-- epochs; seconds for which an epoch is kept.
{epoch.lua}
local ends = {}
for i = 1, #KEYS, 2 do
  ends[#ends + 1] = { epoch_of(KEYS[i + 1], ARGV[1], ARGV[2], ARGV[3]), end_of(KEYS[i]) }
end
return ends
