-- Puts a message that is due into its queue and calls one sleeping worker.
--
-- KEYS[1] queue    KEYS[2] its wake list
-- ARGV[1] message
--
-- Atomic, so that no worker can look between the message and the call and then sleep.
redis.call('LPUSH', KEYS[1], ARGV[1])
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('LPUSH', KEYS[2], 1)
  redis.call('PEXPIRE', KEYS[2], 10000)
end
