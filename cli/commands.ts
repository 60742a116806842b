/** cli/: the commands of `shoal` for people. Roles are added by main.ts. Each file adds one command to the program. */
import type { Command } from 'commander'
import { addCancel } from './cancel.ts'
import { addDeploy } from './deploy.ts'
import { addEnroll } from './enroll.ts'
import { addJobs } from './jobs.ts'
import { addKeys } from './keys.ts'
import { addLogs } from './logs.ts'
import { addMachines } from './machines.ts'
import { addRebuild } from './rebuild.ts'
import { addRollout } from './rollout.ts'
import { addSwarm } from './swarm/commands.ts'
import { addWorkers } from './workers.ts'

/** Adds every command to the program. */
export function addCommands(program: Command): void {
  addCancel(program)
  addDeploy(program)
  addEnroll(program)
  addJobs(program)
  addKeys(program)
  addLogs(program)
  addMachines(program)
  addRebuild(program)
  addRollout(program)
  addSwarm(program)
  addWorkers(program)
}
