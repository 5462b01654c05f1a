-- The first few of some partitions that wait after a given place, in (due, id) order.
--
-- KEYS[1-5] see schedule_lib.lua
-- ARGV[2] how many of each partition    ARGV[3] due, ms, and ARGV[4] id of the place
-- ARGV[5...] partitions
-- Reply   {{id, due, id, due...} of the first partition, ...}
--
-- In Lua because many may be due at one instant: a binary search finds the place among them.
local reply = {}
local last = ARGV[2] - 1
for i = 5, #ARGV do
  local due = PREFIX .. 'due:' .. ARGV[i]
  local low = redis.call('ZCOUNT', due, '-inf', '(' .. ARGV[3])
  local high = low + redis.call('ZCOUNT', due, ARGV[3], ARGV[3])
  while low < high do
    local middle = math.floor((low + high) / 2)
    if redis.call('ZRANGE', due, middle, middle)[1] <= ARGV[4] then low = middle + 1 else high = middle end
  end
  reply[#reply + 1] = redis.call('ZRANGE', due, low, low + last, 'WITHSCORES')
end
return reply
