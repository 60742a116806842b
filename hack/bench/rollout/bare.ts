/** What Node itself takes: an HTTPS server that reads each poll and answers all of them with the same words. */
import { readFileSync } from 'node:fs'
import { createServer } from 'node:https'
import { fleetGroups } from '../../../fleet/footprint.ts'
import type { ServerSettings } from './server.ts'

// Whoever started it is gone.
process.once('disconnect', () => process.exit(1))
const { port, tls } = JSON.parse(process.argv[2] ?? '') as Pick<ServerSettings, 'port' | 'tls'>
const answer = JSON.stringify({ goals: [], grants: [], pollAfterMs: 10_000 })
const headers = { 'content-type': 'application/json', 'content-length': answer.length }
const credentials = { cert: readFileSync(tls.certFile), key: readFileSync(tls.keyFile), ecdhCurve: fleetGroups }
const server = createServer(credentials, (request, response) => {
  request.resume().once('end', () => response.writeHead(200, headers).end(answer))
})
server.listen(port, '127.0.0.1', () => process.send?.('ready'))
