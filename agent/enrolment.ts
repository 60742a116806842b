import { readFile, stat } from 'node:fs/promises'
import { Stalled } from '../api/errors.ts'
import { type Enrolment, enrolment } from '../api/fleetApi.ts'
import { loadVerificationKeys, type VerificationKey } from '../runtime/dsse.ts'

/** What this machine was given when it joined its region. */
export interface Membership extends Enrolment {
  verificationKeys: VerificationKey[]
}

/** Reads the enrolment. @throws Stalled `ConfigInvalid`: unreadable, wrong, or a key that other users can read. */
export async function readEnrolment(file: string): Promise<Membership> {
  const refuse = (why: string, cause?: unknown) => new Stalled('ConfigInvalid', `enrolment ${file}: ${why}`, { cause })
  let parsed: Enrolment
  let mode: number
  try {
    mode = (await stat(file)).mode
    parsed = enrolment.parse(JSON.parse(await readFile(file, 'utf8')))
  } catch (error) {
    throw refuse((error as Error).message, error)
  }
  if (parsed.key !== undefined && mode & 0o077) throw refuse('it holds a key and other users can read it (chmod 600)')
  if (parsed.key !== undefined && parsed.machine === undefined) throw refuse('a key without a machine’s name')
  const verificationKeys = parsed.hubKeys.flatMap(loadVerificationKeys)
  if (verificationKeys.length === 0) throw refuse('no public key of the hub')
  return { ...parsed, verificationKeys }
}
