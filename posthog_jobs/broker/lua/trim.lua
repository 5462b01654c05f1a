-- Lets go the oldest failed jobs that are too old or too many.
--
-- KEYS[1-5] see schedule_lib.lua    KEYS[6-10] see failed_lib.lua
-- ARGV[2] how long they are kept, ms    ARGV[3] most to keep    ARGV[4] most to let go now
-- Reply   how many went; as many as asked for means that there may be more
--
-- Atomic for each batch; the server answers others in between.
return trim(now_ms(), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]))
