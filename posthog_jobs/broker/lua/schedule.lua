-- Stores a message until it is due; one that is due already goes into its queue.
--
-- KEYS[1-5] see schedule_lib.lua    KEYS[6] queue
-- KEYS[7] (optional) what was taken last under the message's name, of those that share it in turn;
--         or the in-flight hash of the lease that holds this message: a worker fetched it from its
--         queue and found that it is not due
-- ARGV[2] id    ARGV[3] due, ms    ARGV[4] partition    ARGV[5] key or ''
-- ARGV[6] 'replace' or 'keep': what a key that waits already means
-- ARGV[7] message    ARGV[8] (with KEYS[7]) 'sent' or 'held': which of the two it is
-- ARGV[9] the message's token, or its tag in flight
-- Reply   {what happened, id that waits now}: 'scheduled', 'replaced', 'kept', 'queued', or
--         'lost' when the lease did not hold the message any more
--
-- Atomic, so that a message is in exactly one place and a key waits at most once. An id waits at
-- most once too. What is sent again after a lost reply is taken once, also when it is gone by now.
local id, due, partition, key = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local now = now_ms()
if ARGV[8] == 'held' and redis.call('HDEL', KEYS[7], ARGV[9]) == 0 then return {'lost', id} end
local sent = ARGV[8] == 'sent' and KEYS[7]
if sent then
  local status, known = string.match(redis.call('GET', sent) or '', '^' .. ARGV[9] .. ':(%l+):(.*)$')
  if status then return {status, known} end
end
local function took(status, id)
  if sent then redis.call('SET', sent, ARGV[9] .. ':' .. status .. ':' .. id, 'PX', 60000) end
  return {status, id}
end
local status = 'scheduled'
if key ~= '' then
  local other = redis.call('HGET', KEYED, partition .. key)
  if other and other ~= id then
    if ARGV[6] == 'keep' then return took('kept', other) end
    remove(other)
    status = 'replaced'
  end
end
if due <= now then
  remove(id)
  redis.call('LPUSH', KEYS[6], message_of(ARGV[7], id, due > 0 and due or now))
  wake(':' .. KEYS[6])
  return took(status == 'replaced' and status or 'queued', id)
end
local record = #KEYS[6] .. ':' .. KEYS[6] .. #partition .. ':' .. partition .. #key .. ':' .. key .. ARGV[7]
if redis.call('HSETNX', WAITING, id, record) == 0 then
  remove(id)
  redis.call('HSET', WAITING, id, record)
end
redis.call('ZADD', PREFIX .. 'due:' .. partition, due, id)
if key ~= '' then redis.call('HSET', KEYED, partition .. key, id) end
redis.call('ZADD', HEADS, 'LT', due, partition)
if due - now < HORIZON and redis.call('ZCOUNT', HEADS, '-inf', '(' .. ARGV[3]) == 0 then wake('') end
return took(status, id)
