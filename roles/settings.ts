/**
 * roles/: one file per role. Each reads its settings from the environment, puts the parts together and runs them until
 * SIGTERM. Nothing else reads the environment, so that parts can be run many times in one process by tests.
 */
import { readFileSync } from 'node:fs'
import { z } from 'zod'
import { ShoalError } from '../api/errors.ts'
import { durationMs } from '../api/meta.ts'

/** A file that must be there when the role starts; the setting's value is its path. */
export const file = z.string().refine((path) => {
  try {
    readFileSync(path)
    return true
  } catch {
    return false
  }
}, 'no such file, or it can’t be read')

/** A span of time, as `30s` or `90d`; parsed to milliseconds. */
export const spanMs = (fallback: string) =>
  z
    .string()
    .regex(/^([0-9]+(ms|s|m|h|d))+$/, 'want a span of time, as 30s, 1h30m or 90d')
    .default(fallback)
    .transform(durationMs)

const unitBytes: Record<string, number> = { '': 1, Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30, Ti: 2 ** 40 }

/** A size, as `512Mi` or in bytes; parsed to bytes. */
export const sizeBytes = z
  .string()
  .regex(/^[0-9]{1,12}(Ki|Mi|Gi|Ti)?$/, 'want a size, as 512Mi or 4Gi')
  .transform((text) => Number.parseInt(text, 10) * (unitBytes[text.replace(/[0-9]/g, '')] ?? 1))

/** `host:port` to listen on; port 0 takes a free one. */
export const address = z
  .string()
  .regex(/^.+:[0-9]{1,5}$/, 'want host:port')
  .transform((text) => {
    const at = text.lastIndexOf(':')
    return { host: text.slice(0, at).replace(/^\[(.*)\]$/, '$1'), port: Number(text.slice(at + 1)) }
  })

/**
 * The settings of a role from environment variables: `SHOAL_` and the key in capitals (`hubUrl` is `SHOAL_HUB_URL`).
 * Throws `ConfigInvalid` naming every variable that is missing or wrong.
 */
export function readSettings<Shape extends z.ZodRawShape>(
  shape: Shape,
  environment: NodeJS.ProcessEnv = process.env,
): z.output<z.ZodObject<Shape>> {
  const names = new Map(Object.keys(shape).map((key) => [key, variable(key)]))
  const given = Object.fromEntries([...names].map(([key, name]) => [key, environment[name] || undefined]))
  const parsed = z.object(shape).safeParse(given)
  if (parsed.success) return parsed.data
  const problems = parsed.error.issues.map(({ path: [key], message }) => `${names.get(String(key))}: ${message}`)
  throw new ShoalError('ConfigInvalid', `settings: ${problems.join('; ')}`)
}

const variable = (key: string) => `SHOAL_${key.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase()}`
