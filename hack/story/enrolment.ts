import { createHash } from 'node:crypto'
import { statSync } from 'node:fs'
import { mkdir, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import type { Enrolment } from '../../api/fleetApi.ts'
import { enrolMachine } from '../../fleet/machines.ts'
import { generateSigningKey } from '../../runtime/dsse.ts'
import { Database } from '../../runtime/sql.ts'

/**
 * Where the machines of the demo in `dir` keep their disks: below it, or, when another user (the one that applications
 * run as) can't reach it there, as below /root, in the system's temporary folder.
 */
export function machinesDir(dir: string): string {
  for (let folder = dirname(dir); ; folder = dirname(folder)) {
    const mode = statSync(folder, { throwIfNoEntry: false })?.mode
    if (mode !== undefined && (mode & 0o001) === 0) {
      return join(tmpdir(), `shoal-machines-${createHash('sha256').update(dir).digest('hex').slice(0, 12)}`)
    }
    if (folder === '/') return join(dir, 'machines')
  }
}

interface Enrolling {
  databaseUrl: string
  dataDir: string
  enrolment: Omit<Enrolment, 'key'> & { machine: string }
}

/** Gives a machine its key and the region the key's public half; returns the enrolment file. */
export async function enrol({ databaseUrl, dataDir, enrolment }: Enrolling): Promise<string> {
  await mkdir(dataDir, { recursive: true, mode: 0o755 })
  const path = join(dataDir, 'enrolment.json')
  const { privateKeyPem, publicKeyPem } = generateSigningKey()
  const { machine, labels, namespaces } = enrolment
  await using database = new Database(databaseUrl, { connectionLimit: 1 })
  await enrolMachine(database, { name: machine, publicKey: publicKeyPem, labels, namespaces })
  await writeFile(path, JSON.stringify({ ...enrolment, key: privateKeyPem }), { mode: 0o600 })
  return path
}
