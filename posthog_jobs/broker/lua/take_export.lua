-- Takes a batch out of the buffer of what an installation exports, if one is full or due.
--
-- KEYS[1] list of events    KEYS[2] hash of the buffer's state: `bytes` in the list; `due`, when
--         (ms) its first event must leave; `armed`, the `due` that a flush is on its way for; and
--         of the batch that left last, until it is where it goes: `batch`, its `id`, the `owner`
--         that took it, and `since` when (ms)
-- ARGV[1] owner    ARGV[2] id of a batch that is where it goes, or ''    ARGV[3] id for a new one
-- ARGV[4] most bytes of a batch    ARGV[5] ms that the events that stay may wait
-- ARGV[6] 'all' to take what there is, 'due' for only what is full or due, 'none' to end with this
-- Reply   {id, batch as a JSON list}; {'', when (ms) to look again, ms from now until then}; or {}
--         when there is nothing
--
-- Atomic, so that each event is in the buffer or in a batch. One batch at a time keeps them in
-- order. Its owner gets it again, and after a minute another one, when the first has died with it.
local HOLD, LOOK = 60000, 1000 -- ms
local LIST, STATE, owner = KEYS[1], KEYS[2], ARGV[1]
local limit, wait = tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function again(at)
  return {'', string.format('%.0f', at), math.max(0, at - now)}
end

redis.call('HDEL', STATE, '') -- as in turn.lua: allowed when memory is full
if ARGV[2] ~= '' and redis.call('HGET', STATE, 'id') == ARGV[2] then
  redis.call('HDEL', STATE, 'batch', 'id', 'owner', 'since')
end

local held = redis.call('HMGET', STATE, 'batch', 'id', 'owner', 'since')
if held[1] then
  if held[3] ~= owner and now < held[4] + HOLD then return again(now + LOOK) end
  redis.call('HSET', STATE, 'owner', owner, 'since', now)
  return {held[2], held[1]}
end

if redis.call('EXISTS', LIST) == 0 then
  redis.call('DEL', STATE)
  return {}
end
local state = redis.call('HMGET', STATE, 'bytes', 'due')
local bytes, due = tonumber(state[1] or 0), tonumber(state[2] or 0)
if ARGV[6] == 'none' or (ARGV[6] == 'due' and bytes < limit and now < due) then return again(due) end

local batch, size, at = {}, 0, 0
repeat
  local events = redis.call('LRANGE', LIST, at, at + 99)
  local full = #events == 0
  for _, event in ipairs(events) do
    if #batch > 0 and size + #event > limit then full = true break end
    batch[#batch + 1] = event
    size = size + #event
  end
  at = at + 100
until full
redis.call('LTRIM', LIST, #batch, -1)
local text = '[' .. table.concat(batch, ',') .. ']'
redis.call('HSET', STATE, 'batch', text, 'id', ARGV[3], 'owner', owner, 'since', now,
  'bytes', bytes - size, 'due', string.format('%.0f', now + wait))
if redis.call('EXISTS', LIST) == 0 then redis.call('HDEL', STATE, 'due') end
return {ARGV[3], text}
