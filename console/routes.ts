/**
 * console/: the hub's page of builds, rollouts and workers. Plain files, served at /console/ to anybody: what they show
 * they ask of the hub's API with the token that the person at the page gives, so it is what that person may see.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Server } from '../runtime/server.ts'

const files = {
  '': ['index.html', 'text/html; charset=utf-8'],
  'console.js': ['console.js', 'text/javascript; charset=utf-8'],
  'console.css': ['console.css', 'text/css; charset=utf-8'],
} as const

// Nothing but its own files, from nowhere else, in nobody's frame.
const headers = {
  'content-security-policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cache-control': 'no-cache',
}

/** GET /console/ and its files; / leads there. */
export function registerConsole(server: Server): void {
  server.get('/', (_request, reply) => reply.redirect('/console/'))
  server.get('/console', (_request, reply) => reply.redirect('/console/'))
  for (const [path, [name, type]] of Object.entries(files)) {
    const bytes = readFileSync(join(import.meta.dirname, name))
    server.get(`/console/${path}`, (_request, reply) => reply.headers(headers).type(type).send(bytes))
  }
}
