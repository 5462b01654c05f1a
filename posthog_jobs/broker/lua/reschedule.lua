-- Moves what waits to another time; to one that is past, into its queue.
--
-- KEYS[1-5] see schedule_lib.lua
-- ARGV[2] id    ARGV[3] due, ms
-- Reply   'rescheduled'; 'queued'; 'promoted' when it had left the schedule before; or 'unknown'
--
-- Atomic: no worker can promote it at the old time meanwhile.
local id, due, now = ARGV[2], tonumber(ARGV[3]), now_ms()
local record = redis.call('HGET', WAITING, id)
if not record then
  if redis.call('ZSCORE', PROMOTED, id) then return 'promoted' end
  return 'unknown'
end
local queue, partition, _, text = parse(record)
redis.call('HDEL', WAITING, '') -- as in turn.lua: allowed when memory is full
if due <= now then
  remove(id)
  redis.call('LPUSH', queue, message_of(text, id, now))
  remember_promoted(now, {id})
  wake(':' .. queue)
  return 'queued'
end
redis.call('ZADD', PREFIX .. 'due:' .. partition, due, id)
set_head(partition)
if due - now < HORIZON then call_for_head(now) end
return 'rescheduled'
