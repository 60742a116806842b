# Sourced by bin/shoal and the scripts in hack/, from any directory. Puts Node 26 first in PATH, bringing it when it is
# missing, lets Node keep what it compiled, and defines: root (this checkout), cache, say, die, locked, bring_modules.
# Everything brought is in the cache, is put there by a rename, and is brought by one process at a time. When all is there,
# sourcing it starts no other program: a fork costs as much as a fifth of Node's own start.
root=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd -P)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/shoal
node_version=26.10.0

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# locked NAME COMMAND…: runs a function or command while no other process runs one under the same name.
locked() {
  local lock=$cache/$1.lock
  shift
  mkdir -p "$cache" || die "can't write to $cache: set XDG_CACHE_HOME to a folder that can be written"
  if command -v flock >/dev/null; then
    # Closed for the command's own children, or a process it leaves behind would hold the lock.
    ( flock 9; "$@" 9>&- ) 9>"$lock"
  else
    "$@"
  fi
}

is_node26() { [ "$("$1" -p 'Number(process.versions.node.split(".")[0]) >= 26' 2>/dev/null)" = true ]; }

need_npm() { command -v npm >/dev/null || die "missing: npm. Install it (Debian: apt-get install npm; or https://nodejs.org)"; }

bring_node() {
  local system arch folder
  case $OSTYPE in linux*) system=linux ;; darwin*) system=darwin ;; *) system=$OSTYPE ;; esac
  case $HOSTTYPE in x86_64) arch=x64 ;; aarch64 | arm64) arch=arm64 ;; *) arch=$HOSTTYPE ;; esac
  folder=$cache/node-$node_version
  node_package=node-$system-$arch
  # From a script that sourced this before.
  case $PATH in "$folder/node_modules/$node_package/bin:"*) return ;; esac
  # Ours first: asking another one for its version would take as long as starting it.
  if [ ! -x "$folder/node_modules/$node_package/bin/node" ]; then
    if command -v node >/dev/null && is_node26 node; then return; fi
    locked node install_node "$folder" || exit 1
  fi
  PATH=$folder/node_modules/$node_package/bin:$PATH
}
install_node() { # FOLDER
  [ ! -x "$1/node_modules/$node_package/bin/node" ] || return 0
  need_npm
  say "bringing Node $node_version (some seconds)"
  rm -rf "$1" "$1.new"
  mkdir -p "$1.new"
  npm install --prefix "$1.new" --ignore-scripts --no-audit --no-fund --loglevel=error \
    "$node_package@$node_version" >"$cache/node.log" 2>&1 ||
    die "missing: Node 26, and npm couldn't fetch $node_package@$node_version (see $cache/node.log). Install Node 26 or newer and put it in PATH"
  mv "$1.new" "$1"
}

# The packages of package-lock.json in node_modules, when they aren't those already.
bring_modules() {
  local lock_hash
  [ ! "$root/node_modules/.shoal-lock-hash" -nt "$root/package-lock.json" ] || return 0
  lock_hash=$(hash_of "$root/package-lock.json")
  locked "modules-$(printf %s "$root" | cksum | cut -d' ' -f1)" install_modules "$lock_hash" || exit 1
}
install_modules() { # HASH
  if [ "$(cat "$root/node_modules/.shoal-lock-hash" 2>/dev/null)" = "$1" ]; then
    touch "$root/node_modules/.shoal-lock-hash"
    return
  fi
  need_npm
  say "installing npm packages (some seconds)"
  (cd "$root" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) >"$cache/modules.log" 2>&1 ||
    die "missing: npm packages; npm ci failed (see $cache/modules.log). Try it by hand: npm ci --ignore-scripts"
  echo "$1" >"$root/node_modules/.shoal-lock-hash"
}

hash_of() { cat "$@" | if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -c1-16; }

bring_node
# A start costs 1.3 s of CPU without it and 0.5 s with it.
export NODE_COMPILE_CACHE=${NODE_COMPILE_CACHE:-$cache/compile}
