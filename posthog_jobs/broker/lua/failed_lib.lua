-- What the scripts about failed jobs share, behind `schedule_lib.lua`.
--
-- KEYS[6] failed           hash: id -> <n>:<partition><details, JSON>
-- KEYS[7] failed_messages  hash: id -> <n>:<queue key><message>, as it was in flight
-- KEYS[8] failed_at        zset: id -> when (ms) it failed; of all
-- KEYS[9] failed_parts     set: partitions that are not empty. A partition is the netstrings of app
--         id, task name, reason, and 'open' or 'replayed'; its ids are in `failed:<partition>`,
--         a zset like failed_at
-- KEYS[10] failed_dropped  string: how many were let go by `trim`
local FAILED, MESSAGES, FAILED_AT, PARTS, DROPPED = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]

local function enter(id, partition, at)
  redis.call('ZADD', PREFIX .. 'failed:' .. partition, at, id)
  redis.call('SADD', PARTS, partition)
end

local function leave(id, partition)
  local key = PREFIX .. 'failed:' .. partition
  redis.call('ZREM', key, id)
  if redis.call('EXISTS', key) == 0 then redis.call('SREM', PARTS, partition) end
end

-- Whether there was one.
local function discard(id)
  local record = redis.call('HGET', FAILED, id)
  if not record then return false end
  redis.call('HDEL', FAILED, id)
  redis.call('HDEL', MESSAGES, id)
  redis.call('ZREM', FAILED_AT, id)
  leave(id, (take(record, 1)))
  return true
end

-- Lets the oldest go while there are more than `most`, or they are older than `age` ms; up to
-- `limit` of them. Returns how many.
local function trim(now, age, most, limit)
  local over = redis.call('ZCARD', FAILED_AT) - most
  local oldest = redis.call('ZRANGE', FAILED_AT, 0, limit - 1, 'WITHSCORES')
  local dropped = 0
  for i = 1, #oldest, 2 do
    if dropped >= over and tonumber(oldest[i + 1]) >= now - age then break end
    discard(oldest[i])
    dropped = dropped + 1
  end
  if dropped > 0 then redis.call('INCRBY', DROPPED, dropped) end
  return dropped
end

-- Keeps a message, and lets the oldest go as `trim` does; an id that failed before is kept as it
-- failed last. Returns how many went.
local function keep(id, partition, details, held, age, most, limit)
  local now = now_ms()
  discard(id)
  redis.call('HSET', FAILED, id, #partition .. ':' .. partition .. details)
  redis.call('HSET', MESSAGES, id, held)
  redis.call('ZADD', FAILED_AT, now, id)
  enter(id, partition, now)
  redis.call('DEL', PREFIX .. 'deliveries:' .. id)
  return trim(now, age, most, limit)
end

