-- Appends an event to the buffers of what installations export, and tells which need a flush.
--
-- KEYS    for each installation: list of events, hash of the buffer's state (see take_export.lua)
-- ARGV[1] event as JSON, or '' to look only
-- ARGV[2...] for each installation: bytes that its buffer may hold, ms that an event may wait
-- Reply   for each installation: when (ms) to flush if no flush is on its way for then, or '';
--         ms from now until then
--
-- Atomic, so that of the workers that fill a buffer one sends its flush. It is told again until it
-- has noted in the state that the flush is sent (`armed`), so that none is forgotten when a worker
-- dies; and a minute after the flush should have come, so that none is missed that was lost.
local LOST = 60000 -- ms
local event = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {}
for i = 1, #KEYS / 2 do
  local list, state = KEYS[2 * i - 1], KEYS[2 * i]
  local limit, wait = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local flush, delay = '', 0
  if event ~= '' then
    redis.call('RPUSH', list, event)
    redis.call('HINCRBY', state, 'bytes', #event)
  end
  if redis.call('EXISTS', list) == 1 or redis.call('HEXISTS', state, 'batch') == 1 then
    local held = redis.call('HMGET', state, 'due', 'bytes', 'armed')
    local due = tonumber(held[1])
    if not due then
      due = now + wait
    elseif due < now - LOST or (due > now and tonumber(held[2] or 0) >= limit) then
      due = now
    end
    local name = string.format('%.0f', due)
    if name ~= held[1] then redis.call('HSET', state, 'due', name) end
    if name ~= held[3] then flush, delay = name, math.max(0, due - now) end
  end
  reply[#reply + 1] = flush
  reply[#reply + 1] = delay
end
return reply
