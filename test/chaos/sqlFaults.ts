import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'

/** Errors after which the server has rolled back, and one (1020) that READ COMMITTED alone never brings about. */
const errors = [
  { errno: 1213, state: '40001', message: 'Deadlock found when trying to get lock' },
  { errno: 1205, state: 'HY000', message: 'Lock wait timeout exceeded' },
  { errno: 1020, state: 'HY000', message: 'Record has changed since last read' },
]

/** COM_QUERY of MySQL's protocol, the first packet of its exchange. */
const query = 0x03

/**
 * Stands before a database server: of the queries, a share is answered with an error instead of being asked, and after
 * some the connection is reset once the server has answered. Gives the URL to use instead.
 */
export async function startSqlFaults(url: string, random: () => number): Promise<string> {
  const target = new URL(url)
  const server = createServer((client) => {
    const database = connect(Number(target.port), target.hostname)
    let rest: Buffer = Buffer.alloc(0)
    let losesAnswer = false
    client.on('data', (chunk: Buffer) => {
      rest = Buffer.concat([rest, chunk])
      for (let packet = firstPacket(rest); packet; packet = firstPacket(rest)) {
        rest = rest.subarray(packet.length)
        if (packet[3] !== 0 || packet[4] !== query || isRollback(packet)) database.write(packet)
        else if (random() < 0.01) client.write(errorPacket(errors[Math.floor(random() * errors.length)]))
        else {
          losesAnswer = random() < 0.002
          database.write(packet)
        }
      }
    })
    database.on('data', (chunk: Buffer) => (losesAnswer ? client.resetAndDestroy() : client.write(chunk)))
    endTogether(client, database)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const faulty = new URL(url)
  faulty.port = String((server.address() as AddressInfo).port)
  return faulty.href
}

/** Three bytes of length, one of sequence, then so much; undefined while it isn't whole. */
function firstPacket(bytes: Buffer): Buffer | undefined {
  const length = bytes.length < 4 ? Number.POSITIVE_INFINITY : 4 + bytes.readUIntLE(0, 3)
  return bytes.length < length ? undefined : bytes.subarray(0, length)
}

const isRollback = (packet: Buffer) => packet.toString('latin1', 5, 20).startsWith('ROLLBACK')

function errorPacket(error = errors[0]): Buffer {
  const { errno, state, message } = error ?? { errno: 0, state: '', message: '' }
  const head = Buffer.from([0xff, errno & 0xff, errno >> 8])
  const payload = Buffer.concat([head, Buffer.from(`#${state}${message}`)])
  const header = Buffer.from([payload.length & 0xff, payload.length >> 8, 0, 1])
  return Buffer.concat([header, payload])
}

function endTogether(client: Socket, database: Socket): void {
  for (const [one, other] of [
    [client, database],
    [database, client],
  ] as const) {
    one.on('error', () => other.destroy())
    one.on('close', () => other.destroy())
  }
}
