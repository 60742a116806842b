// The demo's application: says which commit it was built from, and whether it is well.
const { readFileSync } = require('node:fs')
const { createServer } = require('node:http')
const { join } = require('node:path')
const sea = require('node:sea')

const built = JSON.parse(
  sea.isSea() ? sea.getAsset('built.json', 'utf8') : readFileSync(join(__dirname, 'built.json'), 'utf8'),
)

const server = createServer((request, response) => {
  if (request.url === '/version') return response.end(`${built.commit}\n`)
  if (request.url !== '/healthz') return response.writeHead(404).end('not found\n')
  if (built.broken) return response.writeHead(503).end('broken\n')
  response.end('ok\n')
})
server.listen(Number(process.env.PORT ?? 8080), '127.0.0.1')
process.on('SIGTERM', () => {
  server.close()
  server.closeAllConnections()
})
