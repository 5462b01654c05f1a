-- Puts a message that is due into its queue and calls one sleeping worker.
--
-- KEYS[1] queue    KEYS[2] its wake list
-- KEYS[3] (optional) what was taken last under the message's name, of those that share it in turn
-- ARGV[1] message    ARGV[2] (with KEYS[3]) 'sent'    ARGV[3] the message's token
--
-- Atomic, so that no worker can look between the message and the call and then sleep, and so that
-- a message that is sent again is taken once.
if KEYS[3] then
  local taken = redis.call('GET', KEYS[3]) or ''
  -- `schedule.lua` notes more: it took what was not due yet when it was sent first.
  if taken == ARGV[3] or string.sub(taken, 1, #ARGV[3] + 1) == ARGV[3] .. ':' then return end
end
redis.call('LPUSH', KEYS[1], ARGV[1])
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('LPUSH', KEYS[2], 1)
  redis.call('PEXPIRE', KEYS[2], 10000)
end
if KEYS[3] then redis.call('SET', KEYS[3], ARGV[3], 'PX', 60000) end
