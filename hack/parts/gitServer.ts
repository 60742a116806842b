import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'

export interface GitServerOptions {
  /** Of the repositories. */
  folder: string
  /** `user:password` that it asks for; default: nothing. */
  user?: string
  /** Speaks protocol 0 alone, in which a commit is given only when a ref leads to it. */
  isOld?: boolean
}

export interface GitServer extends Disposable {
  url: string
  /** Of all answers so far. */
  readonly sentBytes: number
}

/** git's own smart HTTP. */
export async function startGitServer({ folder, user, isOld = false }: GitServerOptions): Promise<GitServer> {
  let sentBytes = 0
  const wanted = user === undefined ? undefined : `Basic ${Buffer.from(user).toString('base64')}`
  const server = createServer((request, response) => {
    if (request.headers.authorization !== wanted && wanted !== undefined)
      return response.writeHead(401, { 'www-authenticate': 'Basic realm="git"' }).end()
    const [path, query = ''] = (request.url ?? '').split('?')
    const child = spawn('git', ['http-backend'], {
      env: {
        PATH: process.env.PATH,
        GIT_PROJECT_ROOT: folder,
        GIT_HTTP_EXPORT_ALL: '1',
        PATH_INFO: path,
        QUERY_STRING: query,
        REQUEST_METHOD: request.method,
        CONTENT_TYPE: request.headers['content-type'],
        HTTP_GIT_PROTOCOL: isOld ? undefined : (request.headers['git-protocol'] as string | undefined),
        HTTP_CONTENT_ENCODING: request.headers['content-encoding'],
      },
    })
    request.pipe(child.stdin)
    const chunks: Buffer[] = []
    child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk))
    child.on('close', () => {
      const answer = Buffer.concat(chunks)
      const end = answer.indexOf('\r\n\r\n')
      for (const line of answer.subarray(0, end).toString().split('\r\n')) {
        const [name = '', value = ''] = line.split(': ')
        if (name.toLowerCase() === 'status') response.statusCode = Number.parseInt(value, 10)
        else response.setHeader(name, value)
      }
      sentBytes += answer.length - end - 4
      response.end(answer.subarray(end + 4))
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    get sentBytes() {
      return sentBytes
    },
    [Symbol.dispose]() {
      server.close()
      server.closeAllConnections()
    },
  }
}
