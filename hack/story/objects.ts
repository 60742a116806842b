import { ConfigRepo } from '../../api/configRepo.ts'
import { GoalState } from '../../api/goalState.ts'
import { Pipeline } from '../../api/pipeline.ts'
import { reachableNode } from '../parts/reachableNode.ts'
import type { SystemState } from './state.ts'

/** The one pipeline, goal and place of the demo. */
export const appName = 'web'

/** The pipeline: the demo's application, or the reader's own. Polls rarely, so that it is the webhook that is seen. */
export function pipeline(
  state: Pick<SystemState, 'namespace' | 'shape' | 'repositories'>,
  { pollInterval = '10m' } = {},
) {
  const { own, small } = state.shape
  const command = own ? ['sh', '-c', own.build] : [small ? './build-small.sh' : './build.sh']
  const output = own ? own.output : small ? 'out' : 'out/server'
  return Pipeline.make(
    { name: appName, namespace: state.namespace },
    {
      source: {
        url: state.repositories.app.bare,
        branches: ['main'],
        pollInterval,
        webhookSecretRef: { name: 'web-webhook' },
      },
      build: { command, output, timeout: '30m', env: [{ name: 'NODE', value: reachableNode() }] },
    },
  )
}

/** One box, one region, the rest; soaks of a second, since a person is watching. */
export function goal(state: Pick<SystemState, 'namespace' | 'shape' | 'regions'>, artifact: string) {
  const { own, small } = state.shape
  const [first = ''] = state.shape.regions
  const http = { port: '$(PORT)', path: '/healthz' }
  return GoalState.make(
    { name: appName, namespace: state.namespace },
    {
      artifactRef: { name: artifact },
      machineSelector: { matchLabels: { app: appName } },
      activation: {
        type: 'Process',
        // Without --run there is nothing we could know to start: the release is on disk, and something stays alive.
        command: own ? ['sh', '-c', own.run ?? 'exec sleep infinity'] : ['./server'],
        health: own ? {} : { http },
        stop: { signal: 'SIGTERM', timeout: '5s' },
        minHealthy: '1s',
        deadline: small ? '15s' : '10s',
      },
      rollout: {
        waves: [
          { regions: [first], machines: 1, soak: '1s' },
          { regions: [first], percent: 100, soak: '1s' },
          { regions: ['*'], percent: 100 },
        ],
        maxUnavailable: '50%',
        progressDeadline: '5m',
      },
    },
  )
}

/** The configuration repository, applied as the ServiceAccount `deployer`. */
export const configRepo = (state: Pick<SystemState, 'namespace' | 'repositories'>) =>
  ConfigRepo.make(
    { name: 'config', namespace: state.namespace },
    { url: state.repositories.config.bare, path: 'deploy', interval: '2s', serviceAccountName: 'deployer' },
  )
