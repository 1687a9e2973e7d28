-- Prints the calls that weft.lua makes, without pktgen: lua record.lua, with WEFT_SCENARIO set.

local function show(value)
    if type(value) ~= "table" then
        return tostring(value)
    end
    local parts = {}
    for key, part in pairs(value) do
        parts[#parts + 1] = key .. "=" .. show(part)
    end
    table.sort(parts)
    return table.concat(parts, ",")
end

local function recorder(path)
    return setmetatable({}, {
        __index = function(_, name)
            return recorder(path == "" and name or path .. "." .. name)
        end,
        __call = function(_, ...)
            local words = { path }
            for _, argument in ipairs({ ... }) do
                words[#words + 1] = show(argument)
            end
            print(table.concat(words, " "))
        end,
    })
end

pktgen = recorder("")
dofile((arg[0]:match("^(.*)/") or ".") .. "/weft.lua")
