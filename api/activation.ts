import { z } from 'zod'
import { duration, envVar, rule, validations } from './meta.ts'

/** A TCP port, or `$(NAME)` of a variable in the machine's own environment. */
const port = z
  .union([z.int().min(1).max(65_535), z.string().regex(/^\$\([A-Z_][A-Z0-9_]*\)$/)])
  .meta({ 'x-kubernetes-int-or-string': true })

const command = z.array(z.string().min(1).max(4096)).min(1).max(64)

/** How a machine starts a release and knows that it works. `$(NAME)` in command and env is the machine's variable. */
export const activation = z.object({
  type: z.enum(['Process']).default('Process'),
  command: command.describe('Run in the release’s folder.'),
  user: z
    .string()
    .max(32)
    .regex(/^[a-z_][a-z0-9_-]*$/)
    .meta(validations(rule("self != 'root'", 'an application does not run as root')))
    .optional()
    .describe('A user of the machine. Default: nobody, where the agent is root.'),
  env: z.array(envVar).max(100).default([]),
  envFile: z.string().max(4096).optional().describe('NAME=value lines on the machine, read at the start.'),
  stop: z
    .object({
      signal: z
        .string()
        .regex(/^SIG[A-Z0-9]+$/)
        .default('SIGTERM'),
      timeout: duration.default('30s'),
    })
    .prefault({}),
  health: z
    .object({
      http: z.object({ port, path: z.string().max(2048).default('/healthz') }).optional(),
      tcp: z.object({ port }).optional().describe('Healthy while the port takes connections.'),
      exec: z
        .object({ command })
        .optional()
        .describe('Healthy while it ends with 0, within 5 s. Run in the release’s folder, as the application.'),
    })
    .prefault({})
    .describe('Without a probe: healthy while the process lives.')
    .meta(
      validations(
        rule('[has(self.http), has(self.tcp), has(self.exec)].filter(given, given).size() <= 1', 'give one probe'),
      ),
    ),
  minHealthy: duration.default('10s').describe('How long it must stay healthy to count.'),
  deadline: duration.default('60s').describe('How long it may take to become healthy for minHealthy.'),
})
export type Activation = z.infer<typeof activation>
