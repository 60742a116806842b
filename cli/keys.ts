import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Command } from 'commander'
import { createAuthority, createServerCertificate } from '../runtime/certificates.ts'
import { generateSigningKey } from '../runtime/dsse.ts'

/** `shoal keys FOLDER`: what a new hub needs before it can be installed. */
export function addKeys(program: Command): void {
  program
    .command('keys <folder>')
    .description('make a hub’s signing key, a certificate authority, and server certificates signed by it')
    .option('--host <host...>', 'a name or address that the hub and the fleet servers are reached at', ['localhost'])
    .action(async (folder: string, { host }: { host: string[] }) => {
      await mkdir(folder, { recursive: true, mode: 0o700 })
      const { privateKeyPem, publicKeyPem } = generateSigningKey()
      const authority = await createAuthority('Shoal')
      const server = await createServerCertificate(authority, host)
      const files: [name: string, text: string, what: string][] = [
        ['signing-key.pem', privateKeyPem, 'the hub signs with it: SHOAL_SIGNING_KEY, and nobody else'],
        ['hub-keys.pem', publicKeyPem, 'what regions and machines check it with: SHOAL_HUB_KEYS'],
        ['ca.key', authority.key, 'signs further server certificates; keep it off the machines'],
        ['ca.crt', authority.certificate, 'what workers, regions and machines trust: SHOAL_HUB_CA'],
        ['tls.key', server.key, 'SHOAL_TLS_KEY'],
        ['tls.crt', server.certificate, `SHOAL_TLS_CERT, for ${host.join(', ')}`],
      ]
      for (const [name, text, what] of files) {
        // Never over a key that is there: machines may already trust it.
        await writeFile(join(folder, name), text, { mode: 0o600, flag: 'wx' })
        console.log(`${join(folder, name)}: ${what}`)
      }
    })
}
