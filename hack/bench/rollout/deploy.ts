import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { GoalState } from '../../../api/goalState.ts'
import { goal } from '../../story/objects.ts'
import type { SystemState } from '../../story/state.ts'

/** The demo's goal with this artifact; each `version` makes it another template. */
export function versionOf(state: SystemState, artifact: string, version: number): GoalState {
  const { metadata, spec } = goal(state, artifact)
  const activation = { ...spec.activation, env: [{ name: 'version', value: `${version}` }] }
  return GoalState.parse(GoalState.make(metadata, { ...spec, activation }))
}

/** Whether the API server took it. */
export async function kubectlApply({ kubectl, kubeconfig }: SystemState, object: object): Promise<boolean> {
  const args = ['--kubeconfig', kubeconfig, 'apply', '--request-timeout=5s', '-f', '-']
  const child = spawn(kubectl, args, { stdio: ['pipe', 'ignore', 'ignore'] })
  child.stdin.on('error', () => undefined)
  child.stdin.end(JSON.stringify(object))
  const [code] = (await once(child, 'exit')) as [number]
  return code === 0
}
