-- Keeps the larger, or the smaller, of a number that is stored and a new one: meta.metrics.
--
-- KEYS[1]  hash of an installation's metrics
-- ARGV[1]  field
-- ARGV[2]  the new number
-- ARGV[3]  "max" or "min"
-- reply    1 if the new number was stored, else 0
--
-- Atomic, since between reading and writing another process could store a better one.

local kept = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or nil)
local new = tonumber(ARGV[2])
if kept and ((ARGV[3] == 'max' and kept >= new) or (ARGV[3] == 'min' and kept <= new)) then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
