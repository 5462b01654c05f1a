-- Binds a queue to an exchange, as kombu does, for good.
--
-- KEYS[1] bindings of the exchange    KEYS[2] those of them that do not expire
-- ARGV[1] the binding
--
-- A script, so that it is allowed when memory is full, as in turn.lua: a worker that starts then
-- frees some.
redis.call('SREM', KEYS[1], '')
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('SADD', KEYS[2], ARGV[1])
