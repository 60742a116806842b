import { globSync, readFileSync } from 'node:fs'
import { builtinModules } from 'node:module'
import { dirname, join, relative, resolve } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'

/** From the top: a folder imports only from folders below its own line, and from itself. */
const layers = [
  ['main.ts'],
  ['roles'],
  ['cli', 'console'],
  ['controllers', 'fleet', 'worker', 'agent'],
  ['queue', 'artifacts', 'swarm', 'rollout'],
  ['runtime'],
  ['api'],
]
/** May import anything, and is imported by nothing of the product. */
const outside = new Set(['hack', 'test'])

const root = resolve(import.meta.dirname, '..')
const files = globSync('**/*.ts', { cwd: root, exclude: ['**/node_modules/**', '.shoal/**', '**/.*/**'] })
const top = (file: string) => file.split('/')[0] ?? ''
const level = (file: string) => layers.findIndex((folders) => folders.includes(top(file)))
const isProduct = (file: string) => !outside.has(top(file)) && !file.endsWith('.test.ts')
const imported = /(?:^|[;\s])(?:import|export)\s(?:[^'"]*?\sfrom\s)?\s*['"]([^'"]+)['"]|\bimport\(\s*['"]([^'"]+)['"]/g

function importsOf(file: string): string[] {
  const text = readFileSync(join(root, file), 'utf8')
  return [...text.matchAll(imported)].map(([, fixed, dynamic]) => fixed ?? dynamic ?? '')
}

/** Pairs of a product file and what it imports, where `wrong` says so. */
function violations(wrong: (file: string, target: string) => boolean): string[] {
  return files
    .filter(isProduct)
    .flatMap((file) => importsOf(file).map((target) => [file, target] as const))
    .filter(([file, target]) => wrong(file, target))
    .map(([file, target]) => `${file} imports ${target}`)
}

const isOwn = (target: string) => target.startsWith('.')
const pathOf = (file: string, target: string) => relative(root, resolve(root, dirname(file), target))

/** What runs in production: all that a main.ts or a role reaches. The other files stand in for something in tests. */
const shipped = new Set<string>()
const toVisit = files.filter((file) => isProduct(file) && (/(^|\/)main\.ts$/.test(file) || top(file) === 'roles'))
for (let file = toVisit.pop(); file !== undefined; file = toVisit.pop()) {
  if (shipped.has(file) || !files.includes(file)) continue
  shipped.add(file)
  for (const target of importsOf(file)) if (isOwn(target)) toVisit.push(pathOf(file, target))
}

const test = suite('layers')

test('every folder with code has its layer', () => {
  assert.equal(
    files.filter((file) => !outside.has(top(file)) && level(file) < 0),
    [],
  )
})

test('imports point down the layers, never sideways or up', () => {
  assert.equal(
    violations((file, target) => {
      if (!isOwn(target)) return false
      const to = pathOf(file, target)
      return top(to) !== top(file) && !outside.has(top(to)) && level(to) <= level(file)
    }),
    [],
  )
})

test('the product imports nothing of hack/, test/ or a test', () => {
  assert.equal(
    violations((file, target) => shipped.has(file) && isOwn(target) && !isProduct(pathOf(file, target))),
    [],
  )
})

test('the product imports only packages that are installed with it', () => {
  const { dependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { dependencies: object }
  const packageOf = (target: string) => (/^(@[^/]+\/)?[^/]+/.exec(target) ?? [''])[0]
  const known = new Set([
    ...Object.keys(dependencies),
    ...builtinModules.map((name) => `node:${name.replace('node:', '')}`),
  ])
  assert.equal(
    violations((file, target) => shipped.has(file) && !isOwn(target) && !known.has(packageOf(target))),
    [],
  )
})

test('the check sees imports: the bottom is imported from above', () => {
  const seen = files.filter((file) => top(file) === 'runtime' && isProduct(file)).flatMap(importsOf)
  assert.ok(seen.some((target) => target.startsWith('../api/')))
})

test.run()
