-- Puts messages that a lease holds back into their queues.
--
-- KEYS[1-5] see schedule_lib.lua    KEYS[6] in-flight hash of the lease
-- ARGV[2] lease owner    ARGV[3] 'only' the tags that follow, or 'all' but them
-- ARGV[4] 'front' or 'back' of the queue    ARGV[5] '1' to give up the lease once nothing is left
-- ARGV[6] most to move    ARGV[7...] tags
-- Reply   {how many were put back, how many are still to go}
--
-- Atomic, so that a message is never in flight and in its queue at once, nor in neither.
local inflight, limit = KEYS[6], tonumber(ARGV[6])
redis.call('HDEL', inflight, '') -- as in turn.lua: allowed when memory is full
local tags, rest = {}, 0
if ARGV[3] == 'only' then
  for i = 7, #ARGV do tags[#tags + 1] = ARGV[i] end
else
  local kept = {}
  for i = 7, #ARGV do kept[ARGV[i]] = true end
  for _, tag in ipairs(redis.call('HKEYS', inflight)) do
    if not kept[tag] then
      if #tags < limit then tags[#tags + 1] = tag else rest = rest + 1 end
    end
  end
end
local count = put_back(inflight, tags, ARGV[4] == 'front')
if ARGV[5] == '1' and redis.call('EXISTS', inflight) == 0 then redis.call('ZREM', LEASES, ARGV[2]) end
return {count, rest}
