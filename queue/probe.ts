import { request } from 'node:http'
import { Transient } from '../api/errors.ts'
import { type ProbeAnswer, probeAnswer } from '../api/workerApi.ts'

const maxAnswerBytes = 64 << 10

/**
 * Asks a worker what it holds. A connection of its own for each: probes are minutes apart, and thousands of idle
 * connections cost more. By node:http, for a client with a pool costs five times the CPU here.
 *
 * @throws Transient `Unavailable` when it doesn't answer 200 with what is wanted
 */
export function probeWorker(
  { probeUrl, probeSecret }: { probeUrl: string; probeSecret: string },
  signal: AbortSignal,
): Promise<ProbeAnswer> {
  const { promise, resolve, reject } = Promise.withResolvers<ProbeAnswer>()
  const fail = (cause: unknown) => reject(new Transient('Unavailable', `no answer from ${probeUrl}`, { cause }))
  const headers = { authorization: `Bearer ${probeSecret}`, connection: 'close' }
  const asked = request(`${probeUrl}/probe`, { agent: false, headers, signal }, (answer) => {
    let text = ''
    answer.setEncoding('utf8')
    answer.on('data', (chunk: string) => {
      text += chunk
      if (text.length > maxAnswerBytes) asked.destroy(new RangeError('the answer is too long'))
    })
    answer.on('error', fail)
    answer.on('end', () => {
      try {
        if (answer.statusCode !== 200) throw new Error(`status ${answer.statusCode}`)
        resolve(probeAnswer.parse(JSON.parse(text)))
      } catch (error) {
        fail(error)
      }
    })
  })
  asked.on('error', fail)
  asked.end()
  return promise
}
