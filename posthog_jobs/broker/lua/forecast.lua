-- How many of some partitions are due at or before each of some times.
--
-- KEYS[1-5] see schedule_lib.lua
-- ARGV[2] how many times    ARGV[3...] ms from now, rising    then the partitions
-- Reply   {how many by each time..., how many in all, ms until the first is due, 0 if there is none}
--
-- In Lua for one clock and one round trip over hundreds of partitions.
local now, times, counts = now_ms(), tonumber(ARGV[2]), {}
local first
for i = 1, times + 1 do counts[i] = 0 end
for i = times + 3, #ARGV do
  local due = PREFIX .. 'due:' .. ARGV[i]
  local all = redis.call('ZCARD', due)
  counts[times + 1] = counts[times + 1] + all
  local head = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')[2]
  if head and (not first or tonumber(head) < first) then first = tonumber(head) end
  for t = times, 1, -1 do
    local n = redis.call('ZCOUNT', due, '-inf', string.format('%.3f', now + ARGV[t + 2]))
    if n == 0 then break end
    counts[t] = counts[t] + n
  end
end
counts[times + 2] = first and math.ceil(first - now) or 0
return counts
