#!/bin/sh
# Packs the server as it is, with Node outside and a few MB to carry: quicker than build.sh, for tests.
set -eu
mkdir -p out
if [ -e broken ]; then broken=true; else broken=false; fi
echo "{\"commit\": \"$(git rev-parse HEAD)\", \"broken\": $broken}" >out/built.json
cp server.cjs out/server.cjs
node=$(command -v "${NODE:-node}")
printf '#!/bin/sh\nexec "%s" "$(dirname "$0")/server.cjs"\n' "$node" >out/server
chmod +x out/server
head -c 3000000 "$node" >out/padding
git rev-parse HEAD >>out/padding
