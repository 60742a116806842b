import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { Fenced, ShoalError } from '../api/errors.ts'
import { uploadPartsAnswer, uploadStartAnswer } from '../api/workerApi.ts'
import { hashOutput } from '../artifacts/hashOutput.ts'
import { uploadOutput } from '../artifacts/upload.ts'
import type { Clock } from '../runtime/clock.ts'
import type { Logger } from '../runtime/log.ts'
import { build, failureOf, secretsOf } from './build.ts'
import { BuildLog } from './buildLog.ts'
import { type BuildUser, endProcesses, giveTo } from './buildUser.ts'
import { checkout } from './checkout.ts'
import type { HeldJob } from './held.ts'

export interface JobOptions {
  /** Of this job alone; made and removed here. */
  dir: string
  user: BuildUser
  log: Logger
  clock: Clock
  /** Whether a job that is dropped goes back to the queue, since this worker is shutting down. */
  handBack: () => boolean
}

/** The hub reads a whole blob back before it answers. */
const completeTimeoutMs = 900_000

/** Builds one job, from its claim to the hub's answer to its finish. Throws Fenced when the job was dropped. */
export async function runJob(held: HeldJob, options: JobOptions): Promise<'built' | 'failed' | 'handed back'> {
  const { dir, user, log, clock } = options
  const { job } = held
  const beating = held.beat()
  const output = new BuildLog({
    secrets: secretsOf(job),
    send: (offset, text) => held.call('log', { body: { offset, text } }),
  })
  try {
    await buildAndUpload(held, output, options)
    held.check()
    await held.finish({ result: 'Built' })
    return 'built'
  } catch (error) {
    const why = held.signal.aborted ? held.signal.reason : error
    if (why instanceof Fenced) throw why
    if (held.signal.aborted && options.handBack()) {
      await held.finish({ result: 'HandedBack' })
      return 'handed back'
    }
    const { code, message } = failureOf(why)
    if (code === 'Internal') log.error({ jobId: job.jobId, err: why }, 'building failed')
    output.write(`\n${code}: ${message}\n`)
    if (!held.signal.aborted) await output.close()
    await held.finish({ result: 'Failed', code, message })
    return 'failed'
  } finally {
    held.stop()
    await beating
    await endProcesses(user, undefined)
    await rm(dir, { recursive: true, force: true, maxRetries: 5 }).catch((error: unknown) =>
      log.error({ err: error, clockMs: clock.now() }, 'workspace not removed'),
    )
  }
}

async function buildAndUpload(held: HeldJob, output: BuildLog, { dir, user, clock }: JobOptions): Promise<void> {
  const { job, signal } = held
  const folders = { dir: join(dir, 'checkout'), home: join(dir, 'home'), tmp: join(dir, 'tmp') }
  await mkdir(folders.home, { recursive: true })
  await mkdir(folders.tmp)
  await checkout(job, { dir: folders.dir, signal, clock })
  await giveTo(user, dir)
  held.check()
  await build(job, { ...folders, user, log: output, signal })
  held.check()
  const within = folders.dir
  const hashed = await hashOutput(outputPath(within, job.build.output), { name: job.pipeline, within, signal })
  await output.close()
  await uploadOutput(
    hashed,
    {
      start: async (sizeBytes) => uploadStartAnswer.parse(await held.call('upload/start', { body: { sizeBytes } })),
      parts: async (uploadId, parts) =>
        uploadPartsAnswer.parse(await held.call('upload/parts', { body: { uploadId, parts } })).parts,
      complete: async (uploadId, facts) => {
        await held.call('upload/complete', { body: { uploadId, ...facts }, timeoutMs: completeTimeoutMs })
      },
    },
    { signal },
  )
}

function outputPath(checkout: string, output: string): string {
  if (output.startsWith('/'))
    throw new ShoalError('OutputOutside', `build.output ${output} is not relative to the checkout`)
  return join(checkout, output)
}
