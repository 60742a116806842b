/** For tests: one agent as a process of its own. Usage: node testProcess.ts OPTIONS-AS-JSON. */
import { createLogger } from '../runtime/log.ts'
import { runRole } from '../runtime/shutdown.ts'
import { Agent, type AgentOptions } from './agent.ts'

const log = createLogger('agent', 'debug')
const options = JSON.parse(process.argv[2] ?? '{}') as Omit<AgentOptions, 'log'>
await runRole(log, (signal) => new Agent({ ...options, log }).run(signal))
