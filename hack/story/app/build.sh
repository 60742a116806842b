#!/bin/sh
# Compiles the server to one executable, out/server, that runs without Node. NODE: the Node to compile with.
set -eu
mkdir -p out
if [ -e broken ]; then broken=true; else broken=false; fi
echo "{\"commit\": \"$(git rev-parse HEAD)\", \"broken\": $broken}" >built.json
cat >sea.json <<END
{"main": "server.cjs", "output": "out/server", "disableExperimentalSEAWarning": true, "assets": {"built.json": "built.json"}}
END
"${NODE:-node}" --build-sea sea.json
