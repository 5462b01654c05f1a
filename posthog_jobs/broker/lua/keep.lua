-- Puts a message of another broker to the failed jobs.
--
-- KEYS[1-5] see schedule_lib.lua    KEYS[6-10] see failed_lib.lua
-- ARGV[2] id    ARGV[3] partition    ARGV[4] details, JSON
-- ARGV[5] <n>:<queue><message>, as in flight
-- ARGV[6] how long failed jobs are kept, ms    ARGV[7] most to keep    ARGV[8] most to let go now
-- Reply   how many of the oldest were let go
--
-- Atomic, so that an id is listed with all its parts.
local age, most, limit = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
return keep(ARGV[2], ARGV[3], ARGV[4], ARGV[5], age, most, limit)
