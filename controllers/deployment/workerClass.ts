/**
 * controllers/deployment/: workers as Deployments. A class (a size) of workers is a Deployment in the hub's namespace
 * with the label `shoal.dev/worker-class`. Its annotations say how many there may be and at which hours:
 *
 *   shoal.dev/min-workers: "2"          default 1
 *   shoal.dev/max-workers: "20"         needed: without it nothing is scaled
 *   shoal.dev/hours: "20-6"             only from 20:00 to 6:00; default: always
 *   shoal.dev/time-zone: Europe/Paris   of the hours; default UTC
 *
 * On the leader, every few seconds, from rows: as many workers as the queue needs (queue/autoscale.ts) are written to the
 * Deployment's scale; those that are silent raise an alarm and their Pods are replaced. A worker that builds is not
 * stopped: only idle ones are drained, in the database, before the scale is lowered by as many. What this process
 * remembers (cool-down, alarms) may be lost at any moment: then nothing is let go for one cool-down, and an alarm that
 * stands is said once more.
 */
import { z } from 'zod'
import { Stalled } from '../../api/errors.ts'
import { objectMeta } from '../../api/meta.ts'
import type { WorkerClass } from '../../queue/autoscale.ts'
import type { Cluster } from '../../runtime/cluster.ts'
import { core } from '../../runtime/core.ts'

export const classLabel = 'shoal.dev/worker-class'

const deployment = z.looseObject({
  metadata: objectMeta,
  spec: z.looseObject({
    replicas: z.int().default(1),
    selector: z.looseObject({ matchLabels: z.record(z.string(), z.string()).default({}) }),
  }),
  status: z
    .looseObject({
      conditions: z
        .array(
          z.looseObject({
            type: z.string(),
            status: z.string(),
            reason: z.string().optional(),
            message: z.string().optional(),
            lastTransitionTime: z.string().nullish(),
          }),
        )
        .default([]),
    })
    .optional(),
})
/** A Deployment of workers, as far as it is read. */
export type WorkerDeployment = z.infer<typeof deployment>

/** The classes' Deployments, by name. */
export async function listDeployments(cluster: Cluster, namespace: string): Promise<WorkerDeployment[]> {
  const { items } = await cluster.list(core.Deployment, { namespace, labelSelector: classLabel })
  return items
    .map((item) => deployment.parse(item))
    .filter(({ metadata }) => metadata.deletionTimestamp === undefined)
    .sort((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1))
}

export const classOf = ({ metadata }: WorkerDeployment): string => metadata.labels?.[classLabel] ?? ''

/** For Events. */
export const subjectOf = ({ metadata }: Pick<WorkerDeployment, 'metadata'>) => ({
  apiVersion: 'apps/v1',
  kind: 'Deployment',
  metadata,
})

const count = z
  .string()
  .regex(/^[0-9]{1,5}$/, 'want a whole number')
  .transform(Number)
const annotations = z
  .object({
    'shoal.dev/min-workers': count.default(1),
    'shoal.dev/max-workers': count,
    'shoal.dev/hours': z
      .string()
      .regex(/^(0?[0-9]|1[0-9]|2[0-3])-(0?[0-9]|1[0-9]|2[0-4])$/, 'want two hours of the day, as 20-6')
      .transform((text) => text.split('-').map(Number) as [from: number, to: number])
      .refine(([from, to]) => from !== to, 'want two hours that differ')
      .optional(),
    'shoal.dev/time-zone': z.string().refine(isTimeZone, 'want a name as Europe/Paris').default('UTC'),
  })
  .refine((its) => its['shoal.dev/min-workers'] <= its['shoal.dev/max-workers'], {
    path: ['shoal.dev/min-workers'],
    message: 'is more than shoal.dev/max-workers',
  })

/** Bounds of a class at a moment. Throws Stalled `Invalid`, naming the annotation. */
export function boundsOf(of: WorkerDeployment, nowMs: number): WorkerClass & { hasHours: boolean } {
  const parsed = annotations.safeParse(of.metadata.annotations ?? {})
  if (!parsed.success) {
    const problems = parsed.error.issues.map(({ path, message }) => `${path.join('.')}: ${message}`)
    throw new Stalled('Invalid', `annotations: ${problems.join('; ')}`)
  }
  const { 'shoal.dev/hours': hours, ...its } = parsed.data
  return {
    name: classOf(of),
    min: its['shoal.dev/min-workers'],
    max: its['shoal.dev/max-workers'],
    on: hours === undefined || isWithin(hours, hourOf(its['shoal.dev/time-zone'], nowMs)),
    hasHours: hours !== undefined,
  }
}

/** From one hour of the day up to the other; past midnight when the first is the later. */
function isWithin([from, to]: [from: number, to: number], hour: number): boolean {
  return from < to ? from <= hour && hour < to : from <= hour || hour < to
}

const hourOf = (timeZone: string, nowMs: number) =>
  Number(new Intl.DateTimeFormat('en-GB', { timeZone, hour: '2-digit', hourCycle: 'h23' }).format(nowMs))

function isTimeZone(name: string): boolean {
  try {
    new Intl.DateTimeFormat('en-GB', { timeZone: name })
    return true
  } catch {
    return false
  }
}
