# One image for every role; the role is the first argument.
FROM node:26-bookworm-slim AS modules
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
COPY hack/stubs hack/stubs
RUN npm ci --ignore-scripts --omit=dev

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends git ca-certificates findutils libatomic1 libstdc++6 util-linux && rm -rf /var/lib/apt/lists/*
COPY --from=modules /usr/local/bin/node /usr/bin/node
COPY --from=modules /app /app
COPY main.ts package.json LICENSE /app/
COPY api /app/api
COPY runtime /app/runtime
COPY queue /app/queue
COPY artifacts /app/artifacts
COPY swarm /app/swarm
COPY rollout /app/rollout
COPY controllers /app/controllers
COPY fleet /app/fleet
COPY worker /app/worker
COPY agent /app/agent
COPY cli /app/cli
COPY console /app/console
COPY roles /app/roles
WORKDIR /app
ENTRYPOINT ["/usr/bin/node", "/app/main.ts"]
CMD ["--help"]
