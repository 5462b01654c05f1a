-- Writes one installation, unless any of them has changed since they were read.
--
-- KEYS[1] see Keys.apps
-- ARGV[1] version that was read, '0' for none    ARGV[2] new version
-- ARGV[3] app id    ARGV[4] its entry
-- Reply   1, or 0 when somebody else was faster
--
-- A script, since redis-py's transactions take a server that refuses writes for somebody faster.
if (redis.call('HGET', KEYS[1], ':version') or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], ARGV[3], ARGV[4], ':version', ARGV[2])
return 1
