/** Writes what is generated from the code: `crds/*.yaml` and `docs/reference/errors.md`. `--check` only compares. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { stringify } from 'yaml'
import { crd } from '../api/crd.ts'
import { errorCodes } from '../api/errors.ts'
import { kinds } from '../api/kinds.ts'

const root = join(import.meta.dirname, '..')

/** Every generated file, by its path in the repository. */
export function generate(): Map<string, string> {
  const files = new Map<string, string>()
  const banner = '# Generated from api/ by hack/generate. Do not edit.\n'
  for (const kind of kinds) files.set(`crds/${kind.plural}.yaml`, banner + stringify(crd(kind), { lineWidth: 120 }))
  files.set('docs/reference/errors.md', errorsPage())
  return files
}

function errorsPage(): string {
  const rows = Object.entries(errorCodes).map(
    ([code, { meaning, action }]) => `| \`${code}\` | ${meaning} | ${action} |`,
  )
  return [
    '<!-- Generated from api/errors.ts by hack/generate. Do not edit. -->',
    '# Error codes',
    '',
    'The code stands in a condition’s `reason`, in an HTTP answer’s `code`, in logs, and as a metric’s label.',
    '',
    '| code | meaning | what to do |',
    '|---|---|---|',
    ...rows,
    '',
  ].join('\n')
}

/** Paths of generated files that differ from what is in the repository, or stand there without a source. */
export function stale(): string[] {
  const files = generate()
  const wrong = [...files].filter(([path, text]) => read(path) !== text).map(([path]) => path)
  const orphans = readdirSync(join(root, 'crds')).filter(
    (name) => !files.has(`crds/${name}`) && name !== 'kustomization.yaml',
  )
  return [...wrong, ...orphans.map((name) => `crds/${name}`)]
}

function read(path: string): string | undefined {
  try {
    return readFileSync(join(root, path), 'utf8')
  } catch {
    return undefined
  }
}

if (import.meta.main) {
  if (process.argv.includes('--check')) {
    const wrong = stale()
    for (const path of wrong) console.error(`${path} is out of date: run ./hack/generate`)
    process.exit(wrong.length > 0 ? 1 : 0)
  }
  for (const [path, text] of generate()) {
    mkdirSync(join(root, path, '..'), { recursive: true })
    writeFileSync(join(root, path), text)
  }
}
