-- What the scripts below share; `scripts.py` puts it in front of each of them.
--
-- KEYS[1] heads     zset: partition -> due time (ms) of the first that waits in it
-- KEYS[2] waiting   hash: id -> record of what waits
-- KEYS[3] keyed     hash: partition and key -> id that waits under it
-- KEYS[4] promoted  zset: id -> when (ms) it left the schedule; the last 10,000
-- KEYS[5] leases    zset: lease owner -> when (ms) its lease ends
-- ARGV[1] prefix of all our keys. From it and from what is stored follow the keys that cannot be
--         named beforehand: `due:<partition>`, `inflight:<owner>`, `wake:<queue key>`, and the
--         queue's own key inside a record. That, and nothing else, needs a single node.
--
-- A record is netstrings and a message: <n>:<queue key><n>:<partition><n>:<key><message>, where
-- \1 in the message stands for the id and \2 for the delivery tag, so that an id is stored once, and
-- further control characters for what most messages have in common (`envelope.py`).
local HEADS, WAITING, KEYED, PROMOTED, LEASES = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local PREFIX = ARGV[1]
local HORIZON = 1100 -- ms; sleepers look at the schedule every second, so later heads need no call

local FRAGMENTS = {--[[FRAGMENTS]]}

local function now_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + now[2] / 1000
end

local function take(text, at)
  local _, stop, size = string.find(text, '^(%d+):', at)
  return string.sub(text, stop + 1, stop + size), stop + size + 1
end

local function parse(record)
  local queue, partition, key, at
  queue, at = take(record, 1)
  partition, at = take(record, at)
  key, at = take(record, at)
  return queue, partition, key, string.sub(record, at)
end

-- A token tells one sleeper to look. It is no job: it may expire, and one of a kind is enough.
local function wake(name)
  local key = PREFIX .. 'wake' .. name
  if redis.call('EXISTS', key) == 0 then
    redis.call('LPUSH', key, 1)
    redis.call('PEXPIRE', key, 10000)
  end
end

local function set_head(partition)
  local head = redis.call('ZRANGE', PREFIX .. 'due:' .. partition, 0, 0, 'WITHSCORES')
  if head[1] then
    redis.call('ZADD', HEADS, head[2], partition)
  else
    redis.call('ZREM', HEADS, partition)
  end
end

local function call_for_head(now)
  local head = redis.call('ZRANGE', HEADS, 0, 0, 'WITHSCORES')
  if head[1] and head[2] - now < HORIZON then wake('') end
end

-- Takes an id out of the schedule: record, or nil when it does not wait.
local function remove(id)
  local record = redis.call('HGET', WAITING, id)
  if not record then return nil end
  local _, partition, key = parse(record)
  redis.call('HDEL', WAITING, id)
  redis.call('ZREM', PROMOTED, id) -- a retry waits under an id that left the schedule before
  redis.call('ZREM', PREFIX .. 'due:' .. partition, id)
  if key ~= '' then redis.call('HDEL', KEYED, partition .. key) end
  set_head(partition)
  return record
end

-- The message as it goes on the wire, with its due time for whoever measures lateness.
local function message_of(text, id, due)
  local ms = string.format('%.0f', due)
  text = string.gsub(text, '[\3-\8\14]', FRAGMENTS)
  -- \1 stands for an id that JSON writes as it is, \2 in the place of any
  local quoted = string.sub(cjson.encode(id), 2, -2)
  text = string.gsub(text, '[\1\2]', {['\1'] = id, ['\2'] = quoted .. '.' .. ms})
  return (string.gsub(text, '"eta":null', '"eta":null,"posthog_jobs_due":' .. ms, 1))
end

local function remember_promoted(now, ids)
  local pairs_ = {}
  for _, id in ipairs(ids) do
    pairs_[#pairs_ + 1] = now
    pairs_[#pairs_ + 1] = id
  end
  redis.call('ZADD', PROMOTED, unpack(pairs_))
  redis.call('ZREMRANGEBYRANK', PROMOTED, 0, -10001)
end

-- Moves up to `limit` due messages into their queues, in due order over all partitions.
local function promote(limit, now)
  local count = 0
  while count < limit do
    local heads = redis.call('ZRANGE', HEADS, 0, 1, 'WITHSCORES')
    if not heads[1] or tonumber(heads[2]) > now then break end
    local bound = now
    if heads[4] then bound = math.min(now, tonumber(heads[4])) end
    local due = PREFIX .. 'due:' .. heads[1]
    local found = redis.call('ZRANGEBYSCORE', due, '-inf', bound, 'WITHSCORES', 'LIMIT', 0, limit - count)
    local ids, scores = {}, {}
    for i = 1, #found, 2 do
      ids[#ids + 1] = found[i]
      scores[#scores + 1] = found[i + 1]
    end
    if #ids > 0 then
      local records = redis.call('HMGET', WAITING, unpack(ids))
      for i, record in ipairs(records) do
        if record then
          local queue, partition, key, text = parse(record)
          redis.call('LPUSH', queue, message_of(text, ids[i], scores[i]))
          if key ~= '' then redis.call('HDEL', KEYED, partition .. key) end
          wake(':' .. queue)
        end
      end
      redis.call('ZREM', due, unpack(ids))
      redis.call('HDEL', WAITING, unpack(ids))
      remember_promoted(now, ids)
    end
    set_head(heads[1])
    count = count + #ids
  end
  return count
end

-- Marks a message as delivered before, as kombu does, without decoding it: cjson would turn
-- empty lists into empty objects. What has no place for kombu's marks has one of ours in front.
local function redelivered(text)
  text = string.gsub(text, '"redelivered": ?false', '"redelivered": true')
  if string.find(text, '"redelivered": true', 1, true) then return text end
  local headers, info
  text, headers = string.gsub(text, '("headers": ?{)', '%1"redelivered": true, ', 1)
  text, info = string.gsub(text, '("delivery_info": ?{)', '%1"redelivered": true, ', 1)
  if headers + info == 0 then text = string.gsub(text, '^%s*{', '{"redelivered": true, ', 1) end
  return (string.gsub(text, '"redelivered": true, }', '"redelivered": true}'))
end

-- Puts messages in flight back into their queues: at the front, where the next worker takes them,
-- or at the back.
local function put_back(inflight, tags, front)
  if #tags == 0 then return 0 end
  table.sort(tags, function(a, b) return (tonumber(a) > tonumber(b)) == front end)
  local count = 0
  for _, tag in ipairs(tags) do
    local record = redis.call('HGET', inflight, tag)
    if record then
      local queue, at = take(record, 1)
      redis.call(front and 'RPUSH' or 'LPUSH', queue, redelivered(string.sub(record, at)))
      wake(':' .. queue)
      count = count + 1
    end
  end
  redis.call('HDEL', inflight, unpack(tags))
  return count
end

