"""What the shared index does in Redis as one, whatever else runs there: Lua, which knows ids by their JSON.

Numbers come and go as text, so that none is rounded. Every key is kept for ``ARGV[2]`` ms after its last
write. ``touched`` lists sessions (``s``) and seconds of counts (``c``) by Redis' own time of their last
change, in µs: what the guardrail has not seen yet. All keys are of one server, not of a cluster.
"""

_HEAD = """
local p, ttl, now = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local touched = time[1] .. string.format('%06d', time[2])
"""

# a user's last session becomes another one, unless somebody was quicker; user, what was read, what it is now
BEGIN = """
local p, ttl, now = ARGV[1], ARGV[2], ARGV[3]
local lost = {}
for at = 4, #ARGV, 4 do
  local user, was, last, event_s = unpack(ARGV, at, at + 3)
  local key = p .. 'user:' .. user
  local known = redis.call('HGET', key, 'last') or ''
  if known == was then
    redis.call('HSET', key, 'last', last, 'event_s', event_s, 'seen', now)
    redis.call('PEXPIRE', key, ttl)
  else
    lost[#lost + 1] = user
    lost[#lost + 1] = known
  end
end
return lost
"""

ADD = (
    _HEAD
    + """
local slot = string.format('%d', math.floor(tonumber(now)))
local counts = p .. 'counts:' .. slot
local counted = {'requests', 'failed', 'slow', 'bounded', 'entries'}
for at = 4, #ARGV, 13 do
  local id, entry, user, last, event_s, session, arm, policy, aside = unpack(ARGV, at, at + 8)
  redis.call('SET', p .. 'request:' .. id, entry, 'PX', ttl)
  local key = p .. 'user:' .. user
  local known = redis.call('HMGET', key, 'event_s', 'seen')
  -- one of the future was written before the clock was set back
  if not known[1] or tonumber(event_s) >= tonumber(known[1]) or tonumber(known[2]) > tonumber(now) then
    redis.call('HSET', key, 'last', last, 'event_s', event_s, 'seen', now)
    redis.call('PEXPIRE', key, ttl)
  end
  key = p .. 'session:' .. session
  local was = redis.call('HMGET', key, 'arm', 'policy')
  if not was[1] then
    redis.call('HSET', key, 'user', user, 'arm', arm, 'policy', policy, 'mixed', aside, 'reward', 0,
      'negative', 0, 'began', now, 'seen', now)
  else
    redis.call('HSET', key, 'seen', now)
    -- a session that saw two policies or arms speaks of neither
    if aside == '1' or was[1] ~= arm or was[2] ~= policy then redis.call('HSET', key, 'mixed', 1) end
  end
  redis.call('PEXPIRE', key, ttl)
  redis.call('ZADD', p .. 'touched', touched, 's' .. session)
  for number, name in ipairs(counted) do
    local count = number == 1 and '1' or ARGV[at + 7 + number]
    if count ~= '0' then redis.call('HINCRBY', counts, arm .. '|' .. policy .. '|' .. name, count) end
  end
end
redis.call('PEXPIRE', counts, ttl)
redis.call('ZADD', p .. 'touched', touched, 'c' .. slot)
"""
)

# An item's event is kept as `<moved> <reward> <negative> <JSON>`; beside the items' fields, `told` says that
# something was said to be shown, and `moved` what of it moved the state: `=` all of it, else a JSON array.
FEED = (
    _HEAD
    + """
local answers, at = {}, 4
while at <= #ARGV do
  local request, session, items = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local fed, shown = p .. 'fed:' .. request, p .. 'shown:' .. request
  answers[#answers + 1] = {redis.call('HGETALL', fed), redis.call('SMEMBERS', shown)}
  at = at + 3
  local gained, negative = 0, 0
  for _ = 1, items do
    local item, reward, bad, event = unpack(ARGV, at, at + 3)
    local was = redis.call('HGET', fed, 'i' .. item)
    if was then
      local before, worse = string.match(was, '^%d (%S+) (%S+) ')
      gained, negative = gained - tonumber(before), negative - tonumber(worse)
    end
    gained, negative = gained + tonumber(reward), negative + tonumber(bad)
    redis.call('HSET', fed, 'i' .. item, '1 ' .. reward .. ' ' .. bad .. ' ' .. event)
    at = at + 4
  end
  local said = tonumber(ARGV[at])
  at = at + 1
  for _ = 1, said do
    redis.call('SADD', shown, ARGV[at])
    at = at + 1
  end
  if said >= 0 or redis.call('HEXISTS', fed, 'told') == 1 then
    redis.call('HSET', fed, 'told', 1, 'moved', '=')
  end
  redis.call('PEXPIRE', fed, ttl)
  redis.call('PEXPIRE', shown, ttl)
  local key = p .. 'session:' .. session
  if redis.call('EXISTS', key) == 1 then
    redis.call('HINCRBYFLOAT', key, 'reward', string.format('%.17g', gained))
    redis.call('HINCRBY', key, 'negative', negative)
    redis.call('HSET', key, 'seen', now)
    redis.call('PEXPIRE', key, ttl)
    redis.call('ZADD', p .. 'touched', touched, 's' .. session)
  end
end
return answers
"""
)

NOT_MOVED = """
local fed = ARGV[1]
if redis.call('EXISTS', fed) == 0 then return end
redis.call('HSET', fed, 'moved', ARGV[2])
for at = 3, #ARGV do
  local was = redis.call('HGET', fed, 'i' .. ARGV[at])
  if was then redis.call('HSET', fed, 'i' .. ARGV[at], '0' .. string.sub(was, 2)) end
end
"""

# the lease of the one guardrail that looks: taken when it is free, and prolonged by who holds it. Its number
# is a field of the row of what is in service, which takes a change with the newest number only
LEAD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local number = redis.call('HGET', KEYS[2], ARGV[3])
if holder and number then return tonumber(number) end
return redis.call('HINCRBY', KEYS[2], ARGV[3], 1)
"""
