-- Takes what waits out of the schedule for good.
--
-- KEYS[1-5] see schedule_lib.lua
-- ARGV[2] id
-- Reply   'cancelled'; 'promoted' when it left the schedule for its queue; or 'unknown'
--
-- Atomic: what is answered 'cancelled' cannot be promoted any more.
if remove(ARGV[2]) then return 'cancelled' end
if redis.call('ZSCORE', PROMOTED, ARGV[2]) then return 'promoted' end
return 'unknown'
