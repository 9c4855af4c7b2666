-- Grants permits to all processes of an organisation. One call tells a process's present state and returns its grants.
--
-- KEYS: the state (hash), when each holder's lease ends (sorted set), whose turn is next (sorted set).
-- ARGV: the calling holder's id, and JSON:
--   config  slots, streams, rate, burst, tokens, audio (each a minute), lease; absent for no limit
--   held, streams   its open requests, and how many of these are streams
--   want    the first requests that wait: {id, is a stream, estimated tokens, seconds of audio}
--   done    what happened to requests since the last call
--   known   whether it has seen the state before
--   ttl     seconds after which an unused state is deleted
-- Returns JSON: granted ({id, reserved tokens}), wait (seconds until a call may grant more; -1 if a message comes first).
--
-- A holder reports all that it holds. So a lost response, a restarted store or an expired lease corrects itself.
-- Grants for another holder are kept in its record, and a message to its channel makes it call.

-- As in admission.py.
local FAST_INCREASE = 0.5
local INCREASE_SHARE = 0.04
local MIN_INCREASE = 0.01
local MIN_RATE = 1 / 60
local MAX_RATE = 50
local STREAM_INCREASE_SECONDS = 60
local ROUNDING = 1e-4

-- The share of each new answer in the average number of tokens that come on top of the estimate.
local ANSWER_SHARE = 0.2

-- Seconds without grants after the store lost its state, until all processes have reported what they hold.
local RECOVERY = 1

local state_key, leases_key, line_key = KEYS[1], KEYS[2], KEYS[3]
local me, ask = ARGV[1], cjson.decode(ARGV[2])
local config = ask.config
local clock = redis.call('TIME')
-- Later than this epoch, so that JSON's 14 digits hold microseconds.
local now = tonumber(clock[1]) - 1750000000 + tonumber(clock[2]) / 1e6

local function text(number)
  return string.format('%.6f', number)
end

-- The state.

local state
local stored = redis.call('HGET', state_key, 'state')
if stored then
  state = cjson.decode(stored)
else
  redis.call('DEL', state_key, leases_key, line_key)
  state = {
    level = config.burst, updated = now, paused = 0, decreased = -1, increase = 0, adapting = false,
    tokens = config.tokens, audio = config.audio, answer = 0, learned_at = 0, streams_paused = 0,
    open = 0, streams = 0, turn = 0,
  }
  if ask.known then
    state.level, state.paused = 0, now + RECOVERY
    state.tokens, state.audio = config.tokens and 0, config.audio and 0
  end
end
if not state.adapting then
  state.rate = config.rate
end

local records, changed = {}, {}

local function record(holder)
  if records[holder] == nil then
    local found = redis.call('HGET', state_key, 'holder:' .. holder)
    records[holder] = found and cjson.decode(found) or false
  end
  return records[holder]
end

local function forget(holder)
  redis.call('HDEL', state_key, 'holder:' .. holder)
  redis.call('ZREM', leases_key, holder)
  redis.call('ZREM', line_key, holder)
  records[holder], changed[holder] = false, nil
end

-- The request rate; see RateLimiter in admission.py.

local function advance()
  local elapsed = math.max(0, now - state.updated)
  state.updated = math.max(now, state.updated)
  for _, name in ipairs({'tokens', 'audio'}) do
    if config[name] then
      local level = state[name] or config[name]
      state[name] = math.min(config[name], level + config[name] / 60 * elapsed)
    end
  end
  if not state.rate then
    return
  end
  local growth = state.adapting and state.increase or 0
  local growing = math.min(elapsed, math.max(0, now - state.paused))
  local capacity = growth > 0 and 1 or config.burst
  state.level = math.min(capacity, state.level + state.rate * elapsed + growth * growing ^ 2 / 2)
  if growth > 0 then
    state.rate = state.rate + growth * growing
    if state.rate >= (config.rate or MAX_RATE) then
      state.rate, state.adapting = config.rate, false
      if not config.rate then
        state.increase = 0
      end
    end
  end
end

local function rate_wait()
  local pause = state.paused - now
  if not state.rate or state.level >= 1 - ROUNDING then
    return pause
  end
  pause = math.max(0, pause)
  local missing = 1 - state.level - state.rate * pause
  if missing <= 0 then
    return pause
  end
  local growth = state.adapting and state.increase or 0
  return pause + 2 * missing / (state.rate + math.sqrt(state.rate ^ 2 + 2 * growth * missing))
end

local function slow_down(started, retry_after)
  if started <= state.decreased then
    return
  end
  local rate = state.rate and state.rate / 2 or math.huge
  if state.increase == 0 then
    rate = math.min(rate, 1 / math.max(retry_after, 1 / MAX_RATE))
    state.increase = FAST_INCREASE
  else
    rate = math.min(rate, 1 / math.max(retry_after - 1, 1 / MAX_RATE))
    state.increase = math.max(INCREASE_SHARE * rate, MIN_INCREASE)
  end
  state.rate = math.max(rate, math.min(MIN_RATE, config.rate or MIN_RATE))
  state.level, state.decreased, state.adapting = 0, now, true
end

-- Streams; see StreamSlots in admission.py.

local function stream_wait(open)
  if config.streams and open >= config.streams then
    return math.huge
  end
  local wait = state.streams_paused - now
  if state.learned then
    wait = math.max(wait, state.learned_at + STREAM_INCREASE_SECONDS * (open + 1 - state.learned) - now)
  end
  return math.max(0, wait)
end

local function refuse_stream(open, pause)
  if not state.learned or open - 1 < state.learned or stream_wait(open - 1) <= 0 then
    state.learned, state.learned_at = math.max(1, open - 1), now
  end
  state.streams_paused = math.max(state.streams_paused, now + (pause or 0))
end

-- What expired, and what the caller reports.

for _, holder in ipairs(redis.call('ZRANGEBYSCORE', leases_key, '-inf', text(now))) do
  local dead = record(holder)
  if dead then
    state.open, state.streams = state.open - dead.held, state.streams - dead.streams
  end
  forget(holder)
end

local mine = record(me) or {held = 0, streams = 0, want = {}, granted = {}}
local granted, known, streams = {}, {}, ask.streams
for _, grant in ipairs(mine.granted) do
  granted[#granted + 1] = {grant[1], grant[3]}
  known[grant[1]] = true
  streams = streams + grant[2]
end
state.open = math.max(0, state.open - mine.held + ask.held + #granted)
state.streams = math.max(0, state.streams - mine.streams + streams)
mine.held, mine.streams, mine.granted, mine.want = ask.held + #granted, streams, {}, {}
for _, item in ipairs(ask.want) do
  if not known[item[1]] then
    mine.want[#mine.want + 1] = item
  end
end
records[me] = mine

advance()
for _, outcome in ipairs(ask.done) do
  if outcome.unused and state.rate then
    state.level = math.min(config.burst, state.level + 1)
  end
  if outcome.refused then
    refuse_stream(state.streams + 1, outcome.pause)
  else
    if outcome.spacing then
      slow_down(now - outcome.age, outcome.spacing)
    end
    if outcome.pause then
      state.paused = math.max(state.paused, now + outcome.pause)
    end
  end
  if config.tokens and outcome.used then
    state.tokens = math.min(config.tokens, state.tokens + (outcome.reserved or 0) - outcome.used)
    if outcome.used > 0 then
      state.answer = state.answer + ANSWER_SHARE * (outcome.used - outcome.estimate - state.answer)
    end
  end
  if config.audio and outcome.audio then
    state.audio = math.min(config.audio, state.audio - outcome.audio)
  end
end

if #mine.want == 0 then
  redis.call('ZREM', line_key, me)
elseif not redis.call('ZSCORE', line_key, me) then
  state.turn = state.turn + 1
  redis.call('ZADD', line_key, text(state.turn), me)
end

-- Grants, one to each holder in turn.

local wait = -1

local function no_later(seconds)
  if seconds < math.huge and (wait < 0 or seconds < wait) then
    wait = math.max(0, seconds)
  end
end

local function reserve(item)
  return item[3] > 0 and math.max(1, item[3] + state.answer) or 0
end

-- The first request in the line that no limit holds back. One that waits for tokens holds back all that need tokens.
local function next_request()
  local no_tokens, no_audio = false, false
  for _, holder in ipairs(redis.call('ZRANGE', line_key, 0, -1)) do
    local waiting = record(holder)
    if not waiting then
      redis.call('ZREM', line_key, holder)
    else
      for index, item in ipairs(waiting.want) do
        local stream = item[2] == 1 and stream_wait(state.streams) or 0
        local tokens, audio = reserve(item), item[4]
        if stream > 0 then
          no_later(stream)
        elseif config.tokens and tokens > 0 and (no_tokens or state.tokens < math.min(tokens, config.tokens) - 1) then
          if not no_tokens then
            no_later((math.min(tokens, config.tokens) - state.tokens) * 60 / config.tokens)
          end
          no_tokens = true
        elseif config.audio and audio > 0 and (no_audio or state.audio < math.min(audio, config.audio) - ROUNDING) then
          if not no_audio then
            no_later((math.min(audio, config.audio) - state.audio) * 60 / config.audio)
          end
          no_audio = true
        else
          return holder, waiting, index
        end
      end
    end
  end
end

while not config.slots or state.open < config.slots do
  local pause = rate_wait()
  if pause > 0 then
    if redis.call('ZCARD', line_key) > 0 then
      no_later(pause)
    end
    break
  end
  local holder, waiting, index = next_request()
  if not holder then
    break
  end
  local item = table.remove(waiting.want, index)
  local reserved = reserve(item)
  if state.rate then
    state.level = state.level - 1
  end
  if config.tokens then
    state.tokens = state.tokens - reserved
  end
  if config.audio then
    state.audio = state.audio - item[4]
  end
  state.open, waiting.held = state.open + 1, waiting.held + 1
  state.streams, waiting.streams = state.streams + item[2], waiting.streams + item[2]
  if holder == me then
    granted[#granted + 1] = {item[1], reserved}
  else
    waiting.granted[#waiting.granted + 1] = {item[1], item[2], reserved}
    changed[holder] = true
  end
  state.turn = state.turn + 1
  if #waiting.want > 0 then
    redis.call('ZADD', line_key, text(state.turn), holder)
  else
    redis.call('ZREM', line_key, holder)
  end
end

-- Keep the state.

if mine.held == 0 and #mine.want == 0 then
  forget(me)
else
  redis.call('HSET', state_key, 'holder:' .. me, cjson.encode(mine))
  redis.call('ZADD', leases_key, text(now + config.lease), me)
end
for holder in pairs(changed) do
  redis.call('HSET', state_key, 'holder:' .. holder, cjson.encode(records[holder]))
  redis.call('PUBLISH', state_key .. ':' .. holder, 'granted')
end
redis.call('HSET', state_key, 'state', cjson.encode(state))
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ask.ttl)
end
if #mine.want > 0 then
  -- A dead process's permits come back when its lease ends.
  local first = redis.call('ZRANGE', leases_key, 0, 1, 'WITHSCORES')
  local expiry = first[1] == me and first[4] or first[2]
  if expiry then
    no_later(tonumber(expiry) - now + 0.005)
  end
end
return cjson.encode({granted = granted, wait = wait})
