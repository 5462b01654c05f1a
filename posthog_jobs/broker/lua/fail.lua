-- Moves a message from those in flight to the failed jobs, which acknowledges it.
--
-- KEYS[1-5] see schedule_lib.lua    KEYS[6-10] see failed_lib.lua
-- KEYS[11] in-flight hash of the lease that holds the message
-- ARGV[2] its tag    ARGV[3] id    ARGV[4] partition    ARGV[5] details, JSON
-- ARGV[6] how long failed jobs are kept, ms    ARGV[7] most to keep    ARGV[8] most to let go now
-- Reply   {1, or 0 when the lease does not hold the message any more and nothing was kept,
--         how many of the oldest were let go}
--
-- Atomic, so that a message is either in flight or failed: a crash neither loses it nor keeps it
-- twice.
local inflight, tag, id, partition = KEYS[11], ARGV[2], ARGV[3], ARGV[4]
local held = redis.call('HGET', inflight, tag)
if not held then return {0, 0} end
redis.call('HDEL', inflight, tag) -- first, as in turn.lua: allowed when memory is full
local most, limit = tonumber(ARGV[7]), tonumber(ARGV[8])
return {1, keep(id, partition, ARGV[5], held, tonumber(ARGV[6]), most, limit)}
