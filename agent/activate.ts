import { Stalled } from '../api/errors.ts'
import type { Grant } from '../api/fleetApi.ts'
import { durationMs } from '../api/meta.ts'
import type { GoalPayload, Template } from '../rollout/envelope.ts'
import type { Run } from './supervisor/protocol.ts'

/** Why a grant may not be begun, or undefined. `receivedMs` and `nowMs` are of the monotonic clock. */
export function refuseGrant(grant: Grant, goal: GoalPayload | undefined, at: { receivedMs: number; nowMs: number }) {
  if (!goal) return 'no such goal is held here'
  if (goal.sequence !== grant.sequence) return `it is for sequence ${grant.sequence}, held is ${goal.sequence}`
  if (goal.revision !== grant.revision || goal.templateHash !== grant.template) return 'it is for another template'
  if (goal.halted) return 'the goal is halted'
  if (at.nowMs - at.receivedMs >= grant.beginWithinMs) return 'it came too late'
  return undefined
}

/** What the supervisor runs: the template with this machine's variables in it. @throws Stalled `ActivationFailed`. */
export function resolveRun(o: {
  template: Template
  templateHash: string
  release: string
  place: string
  machineEnv: Record<string, string>
}): Run {
  const { activation, artifact } = o.template
  const expand = (text: string) =>
    text.replace(/\$\(([A-Za-z_][A-Za-z0-9_]*)\)/g, (_, name: string) => {
      const value = o.machineEnv[name]
      if (value === undefined) throw new Stalled('ActivationFailed', `the machine has no variable ${name}`)
      return value
    })
  const portOf = (given: string | number) => {
    const port = Number(expand(String(given)))
    if (port >= 1 && port <= 65_535) return port
    throw new Stalled('ActivationFailed', `${given} is not a port`)
  }
  const { http, tcp, exec } = activation.health
  const env = Object.fromEntries(activation.env.map(({ name, value }) => [name, expand(value)]))
  return {
    template: o.templateHash,
    release: o.release,
    command: activation.command.map(expand),
    env: { ...o.machineEnv, SHOAL_PLACE: o.place, SHOAL_ARTIFACT: artifact.name, ...env },
    ...(activation.envFile !== undefined && { envFile: activation.envFile }),
    ...(activation.user !== undefined && { user: activation.user }),
    stop: { signal: activation.stop.signal as NodeJS.Signals, timeoutMs: durationMs(activation.stop.timeout) },
    ...(http && { health: { port: portOf(http.port), path: http.path } }),
    ...(tcp && { health: { tcpPort: portOf(tcp.port) } }),
    ...(exec && { health: { command: exec.command.map(expand) } }),
    minHealthyMs: durationMs(activation.minHealthy),
    deadlineMs: durationMs(activation.deadline),
  }
}
