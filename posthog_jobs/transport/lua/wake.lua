-- Calls one sleeping worker, after a batch of plain LPUSH.
--
-- KEYS[1] wake list
--
-- Atomic, so that there is one token at most.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('LPUSH', KEYS[1], 1)
  redis.call('PEXPIRE', KEYS[1], 10000)
end
