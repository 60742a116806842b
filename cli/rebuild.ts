import type { Command } from 'commander'
import { rebuildAnswer } from '../api/jobApi.ts'
import { type HubOptions, openHub, withJobs } from './hub.ts'

/** `shoal rebuild JOB`: builds its commit once more, as a job of its own. Needs the right to create BuildJobs. */
export function addRebuild(program: Command): void {
  const command = program
    .command('rebuild <job>')
    .description('build the job’s commit once more, as a new job; one that is under way is taken instead')
  withJobs(command).action(async (job: string, options: HubOptions) => {
    await using hub = openHub(options)
    const path = hub.jobsPath(job, 'rebuild')
    const { name, created } = await hub.client.request('POST', path, { body: {}, schema: rebuildAnswer })
    console.log(created ? `${name} is queued` : `${name} builds the same commit already`)
  })
}
