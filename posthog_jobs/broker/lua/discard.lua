-- Lets failed jobs go for good.
--
-- KEYS[1-5] see schedule_lib.lua    KEYS[6-10] see failed_lib.lua
-- ARGV[2...] ids
-- Reply   how many there were
--
-- Atomic for each call: an id is either listed with all its parts, or gone.
local count = 0
for i = 2, #ARGV do
  if discard(ARGV[i]) then count = count + 1 end
end
return count
