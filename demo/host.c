/* A host for Lua: load the standard library, run one script, print what it returns. */
#include <stdio.h>

#include "lauxlib.h"
#include "lua.h"
#include "lualib.h"

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s SCRIPT\n", argv[0]);
    return 2;
  }
  lua_State *state = luaL_newstate();
  if (state == NULL) return 1;
  luaL_openlibs(state);
  if (luaL_dofile(state, argv[1]) != 0) {
    fprintf(stderr, "%s\n", lua_tostring(state, -1));
    return 1;
  }
  printf("%s\n", lua_tostring(state, -1));
  lua_close(state);
  return 0;
}
