import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createAuthority, createServerCertificate, type KeyPair } from '../../runtime/certificates.ts'

/** A certificate authority in a folder: made once, reused by whoever opens the folder again. */
export class Authority {
  readonly caFile: string
  /** PEM. */
  readonly ca: string
  readonly #dir: string
  readonly #pair: KeyPair

  private constructor(dir: string, pair: KeyPair) {
    this.#dir = dir
    this.#pair = pair
    this.caFile = join(dir, 'ca.crt')
    this.ca = pair.certificate
  }

  static async open(dir: string): Promise<Authority> {
    await mkdir(dir, { recursive: true })
    return new Authority(dir, await kept(dir, 'ca', () => createAuthority('shoal')))
  }

  /** A server's certificate and key as files `<name>.crt` and `<name>.key`; those that are there are reused. */
  async issue(name: string, hosts = ['localhost', '127.0.0.1', '::1']): Promise<{ certFile: string; keyFile: string }> {
    await kept(this.#dir, name, () => createServerCertificate(this.#pair, hosts))
    return { certFile: join(this.#dir, `${name}.crt`), keyFile: join(this.#dir, `${name}.key`) }
  }
}

async function kept(dir: string, name: string, create: () => Promise<KeyPair>): Promise<KeyPair> {
  const [certFile, keyFile] = [join(dir, `${name}.crt`), join(dir, `${name}.key`)]
  try {
    return { certificate: await readFile(certFile, 'utf8'), key: await readFile(keyFile, 'utf8') }
  } catch {
    const pair = await create()
    await writeFile(keyFile, pair.key, { mode: 0o600 })
    await writeFile(certFile, pair.certificate)
    return pair
  }
}
