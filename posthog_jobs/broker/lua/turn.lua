-- A worker's turn: acknowledge, renew the lease, restore what dead workers held, promote what is
-- due, and fetch.
--
-- KEYS[1-5] see schedule_lib.lua    KEYS[6] in-flight hash of this lease    KEYS[7...] queues to
--         fetch from, the most urgent priority first, all queues of a priority side by side
-- ARGV[2] lease owner    ARGV[3] length of the lease, ms    ARGV[4] how many messages to fetch
-- ARGV[5] tag of the first; counts up    ARGV[6] most to promote    ARGV[7] most to restore
-- ARGV[8] queues per priority    ARGV[9] '1' to take from them in turns, '0' in their order
-- ARGV[10] one letter per queue of a priority: 'y' holds its messages in flight until they are
--         acknowledged, 'n' hands them over for good (no_ack)
-- ARGV[11] '1' when this lease holds messages    ARGV[12...] tags to acknowledge
-- Reply   {ms until the next one is due or '', whether the lease had been lost,
--         version of the installed apps, how many were promoted, index into KEYS, tag, message,
--         index, tag, message...}
--
-- Atomic, so that a worker killed at any instruction has each message either in its queue or in
-- flight, and so that due messages cannot be promoted twice. One call, because round trips are
-- what a worker spends its time on.
local owner, room = ARGV[2], tonumber(ARGV[4])
local inflight = KEYS[6]
-- When memory is full, a script may write only if its first write frees some: workers must go on.
redis.call('HDEL', inflight, '')
for first = 12, #ARGV, 1000 do
  redis.call('HDEL', inflight, unpack(ARGV, first, math.min(first + 999, #ARGV)))
end

local now = now_ms()
local lost = ARGV[11] == '1' and not redis.call('ZSCORE', LEASES, owner)
redis.call('ZADD', LEASES, now + ARGV[3], owner)

local left = tonumber(ARGV[7])
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, 4)) do
  if left > 0 then
    local held = PREFIX .. 'inflight:' .. dead
    left = left - put_back(held, redis.call('HRANDFIELD', held, left), true)
    if redis.call('EXISTS', held) == 0 then redis.call('ZREM', LEASES, dead) end
  end
end

local promoted = promote(tonumber(ARGV[6]), now)

-- Read with the messages, so that none is run by what was installed before it was sent.
local apps_version = tonumber(redis.call('HGET', PREFIX .. 'apps', ':version') or 0) or 0
local reply = {'', lost and 1 or 0, apps_version, promoted}
local group, fair, tag = tonumber(ARGV[8]), ARGV[9] == '1', tonumber(ARGV[5])
local holds, records = ARGV[10], {}
local function got(index, message)
  local name = string.format('%.0f', tag)
  tag = tag + 1
  room = room - 1
  reply[#reply + 1] = index
  reply[#reply + 1] = name
  reply[#reply + 1] = message
  local place = (index - 7) % group + 1
  if string.sub(holds, place, place) == 'y' then
    local queue = KEYS[index]
    records[#records + 1] = name
    records[#records + 1] = #queue .. ':' .. queue .. message
  end
end
for first = 7, #KEYS, math.max(group, 1) do
  if room <= 0 then break end
  local each = (fair and group > 1) and 1 or room
  local open = {}
  for index = first, first + group - 1 do open[#open + 1] = index end
  while room > 0 and #open > 0 do
    local still = {}
    for _, index in ipairs(open) do
      if room <= 0 then break end
      local messages = redis.call('RPOP', KEYS[index], math.min(each, room))
      if messages then
        for _, message in ipairs(messages) do got(index, message) end
        still[#still + 1] = index
      end
    end
    open = still
  end
end
if #records > 0 then
  for first = 1, #records, 1000 do
    redis.call('HSET', inflight, unpack(records, first, math.min(first + 999, #records)))
  end
  -- This worker will be busy: another one should take what is left, and watch the schedule.
  for index = 7, #KEYS do
    if redis.call('EXISTS', KEYS[index]) == 1 then wake(':' .. KEYS[index]) end
  end
  call_for_head(now)
end

local head = redis.call('ZRANGE', HEADS, 0, 0, 'WITHSCORES')
if head[1] then reply[1] = string.format('%.3f', math.max(0, head[2] - now)) end
return reply
