-- Requests for wrk: arguments are the kind of body, method, path before and after the number, the
-- number of keys, bytes of a value, and headers as name=value. With "padded-" before the kind the
-- number has eight digits and each request is made when it is due, for another key: few requests
-- over and over would find all they touch of a large store in the caches.
local digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

local function base64(text)
    local out = {}
    for at = 1, #text, 3 do
        local a, b, c = text:byte(at, at + 2)
        local n = a * 65536 + (b or 0) * 256 + (c or 0)
        for place = 3, 0, -1 do
            local digit = math.floor(n / 64 ^ place) % 64 + 1
            out[#out + 1] = digits:sub(digit, digit)
        end
        if not c then out[#out] = "=" end
        if not b then out[#out - 1] = "=" end
    end
    return table.concat(out)
end

local threads = 0
function setup(thread)
    thread:set("seed", threads)
    threads = threads + 1
end

-- One request, for a key by chance.
local function make()
    local n = math.random(0, keys - 1)
    if kind == "v3put" then
        local key = base64("bench/" .. n)
        return wrk.format(method, before, headers, '{"key":"' .. key .. '","value":"' .. coded .. '"}')
    elseif kind == "v3get" then
        return wrk.format(method, before, headers, '{"key":"' .. base64("bench/" .. n) .. '"}')
    elseif kind == "v3local" then
        return wrk.format(method, before, headers, '{"key":"' .. base64("bench/" .. n) .. '","serializable":true}')
    end
    local path = before .. number:format(n) .. after
    if kind == "form" then
        return wrk.format(method, path, headers, "value=" .. value)
    elseif kind == "raw" then
        return wrk.format(method, path, headers, value)
    end
    return wrk.format(method, path, headers)
end

-- Requests that are put together from parts: cheap enough to make while the clock runs.
function anew()
    local mark = "00000000"
    number = mark
    local whole = make()
    local first, last = whole:find(mark, 1, true)
    local head, tail = whole:sub(1, first - 1), whole:sub(last + 1)
    -- Other keys in each run: those of the run before are in the caches.
    math.randomseed(os.time() * 64 + seed)
    local random, format = math.random, string.format
    function request()
        return head .. format("%08d", random(0, keys - 1)) .. tail
    end
end

function init(args)
    kind, method, before, after = args[1], args[2], args[3], args[4]
    number = "%d"
    local padded = kind:sub(1, 7) == "padded-"
    if padded then
        kind, number = kind:sub(8), "%08d"
    end
    keys, size = tonumber(args[5]), tonumber(args[6])
    headers = {}
    for at = 7, #args do
        local name, value = args[at]:match("^([^=]+)=(.*)$")
        headers[name] = value
    end
    math.randomseed(seed + 1)
    value = string.rep("v", size)
    coded = base64(value)
    if padded then
        anew()
        return
    end
    -- Made before the clock starts: what the load costs is taken from the services, which share
    -- the processors with it. A gigabyte of values would not fit here, so fewer are made of those.
    made, at = {}, 0
    for _ = 1, math.max(64, math.min(8192, math.floor(67108864 / (size + 256)))) do
        made[#made + 1] = make()
    end
end

function request()
    at = at % #made + 1
    return made[at]
end

-- One line for programs: what happened, microseconds, and quantiles of them.
function done(summary, latency)
    local errors = summary.errors
    io.write(string.format("RESULT %d %d %d %d %d %d %d\n", summary.requests, summary.duration,
        errors.connect + errors.read + errors.write + errors.timeout, errors.status,
        latency:percentile(50), latency:percentile(99), latency.max))
end
