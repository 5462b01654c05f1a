-- Takes the first few of a partition out of the schedule.
--
-- KEYS[1-5] see schedule_lib.lua
-- ARGV[2] partition    ARGV[3] most to take
-- Reply   how many were taken; fewer than asked for means that none is left
--
-- Atomic for each batch; the server answers others in between.
local partition = ARGV[2]
local due = PREFIX .. 'due:' .. partition
local ids = redis.call('ZRANGE', due, 0, ARGV[3] - 1)
if #ids == 0 then return 0 end
for i, record in ipairs(redis.call('HMGET', WAITING, unpack(ids))) do
  if record then
    local _, _, key = parse(record)
    if key ~= '' then redis.call('HDEL', KEYED, partition .. key) end
  end
end
redis.call('ZREM', due, unpack(ids))
redis.call('HDEL', WAITING, unpack(ids))
redis.call('ZREM', PROMOTED, unpack(ids)) -- see remove
set_head(partition)
return #ids
