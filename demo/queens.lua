-- How many ways to put eight queens on a board; the answer has been known since 1850.
local function place(row, columns, up, down, size)
  if row > size then return 1 end
  local ways = 0
  for column = 1, size do
    if not (columns[column] or up[row + column] or down[row - column]) then
      columns[column], up[row + column], down[row - column] = true, true, true
      ways = ways + place(row + 1, columns, up, down, size)
      columns[column], up[row + column], down[row - column] = nil, nil, nil
    end
  end
  return ways
end
return _VERSION .. ": eight queens stand in " .. place(1, {}, {}, {}, 8) .. " ways"
