-- Puts the message of a failed job back into its queue, under another id.
--
-- KEYS[1-5] see schedule_lib.lua    KEYS[6-10] see failed_lib.lua
-- KEYS[11] queue; none where the message was sent already, by another broker
-- ARGV[2] id    ARGV[3] its record as it was read    ARGV[4] its record from now on
-- ARGV[5] the message to send
-- Reply   'replayed'; 'changed' when the record is another one by now; or 'unknown'
--
-- Atomic, so that a failed job is replayed at most once, however many ask for it.
local id = ARGV[2]
local record = redis.call('HGET', FAILED, id)
if not record then return 'unknown' end
if record ~= ARGV[3] then return 'changed' end
redis.call('HSET', FAILED, id, ARGV[4])
leave(id, (take(record, 1)))
enter(id, (take(ARGV[4], 1)), redis.call('ZSCORE', FAILED_AT, id))
if KEYS[11] then
  redis.call('LPUSH', KEYS[11], ARGV[5])
  wake(':' .. KEYS[11])
end
return 'replayed'
