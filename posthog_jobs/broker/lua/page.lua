-- The first few of some partitions that wait after a given place.
--
-- KEYS[1-5] see schedule_lib.lua
-- ARGV[2] how many of each partition    ARGV[3] due, ms, and ARGV[4] id of the place
-- ARGV[5...] for each partition a word, and its name: 'within' for the place's own, 'behind' for
--         those of which all that is due then comes before the place, 'from' for the others
-- Reply   {{id, due, id, due...} of the first partition, ...}
--
-- In Lua because many may be due at one instant: a binary search finds the place among them.
local reply = {}
local last = ARGV[2] - 1
for i = 5, #ARGV, 2 do
  local due = PREFIX .. 'due:' .. ARGV[i + 1]
  local low = redis.call('ZCOUNT', due, '-inf', (ARGV[i] == 'behind' and '' or '(') .. ARGV[3])
  if ARGV[i] == 'within' then
    local high = low + redis.call('ZCOUNT', due, ARGV[3], ARGV[3])
    while low < high do
      local middle = math.floor((low + high) / 2)
      if redis.call('ZRANGE', due, middle, middle)[1] <= ARGV[4] then low = middle + 1 else high = middle end
    end
  end
  reply[#reply + 1] = redis.call('ZRANGE', due, low, low + last, 'WITHSCORES')
end
return reply
