import { mkdir, writeFile } from 'node:fs/promises'
import { join, relative } from 'node:path'

/** A real node, to which the bases of manifests/ are applied with what an installation brings of its own. */
export interface Installation {
  dir: string
  root: string
  image: { name: string; tag: string }
  region: string
  hub: { secret: Record<string, string>; tls: Record<string, string> }
  fleet: { settings: Record<string, string>; secret: Record<string, string>; tls: Record<string, string> }
  agent: { enrolment: object; dataDir: string }
}

type Files = Record<string, string>

/** Writes the overlays `hub`, `region` and `agent`, as somebody who installs Shoal would. */
export async function writeOverlays(o: Installation): Promise<void> {
  await overlay(o, 'hub', { secrets: { 'shoal-hub': o.hub.secret, 'shoal-hub-tls': o.hub.tls } })
  await overlay(o, 'region', {
    secrets: { 'shoal-region': o.fleet.secret, 'shoal-region-tls': o.fleet.tls },
    configMaps: { 'shoal-region': o.fleet.settings },
  })
  await overlay(o, 'agent', {
    secrets: { 'shoal-agent': { 'enrolment.json': JSON.stringify(o.agent.enrolment) } },
    patches: [
      patch('/volumes/1/projected/sources/0/serviceAccountToken/audience', `shoal-region-${o.region}`),
      patch('/volumes/2/hostPath/path', o.agent.dataDir),
      patch('/containers/0/volumeMounts/2/mountPath', o.agent.dataDir),
      patch('/containers/0/env/2/value', o.agent.dataDir),
    ],
  })
}

const patch = (path: string, value: string) => ({ op: 'replace', path: `/spec/template/spec${path}`, value })

async function overlay(
  o: Installation,
  base: string,
  more: { secrets?: Record<string, Files>; configMaps?: Record<string, Files>; patches?: object[] },
): Promise<void> {
  const dir = join(o.dir, base)
  await mkdir(dir, { recursive: true })
  const secrets = await Promise.all(
    Object.entries(more.secrets ?? {}).map(async ([name, files]) => {
      for (const [file, text] of Object.entries(files)) await writeFile(join(dir, `${name}.${file}`), text)
      return { name, files: Object.keys(files).map((file) => `${file}=${name}.${file}`) }
    }),
  )
  const kustomization = {
    apiVersion: 'kustomize.config.k8s.io/v1beta1',
    kind: 'Kustomization',
    namespace: { hub: 'shoal-system', region: 'shoal-region', agent: 'shoal-agent' }[base],
    resources: [relative(dir, join(o.root, 'manifests', base))],
    images: [{ name: 'shoal', newName: o.image.name, newTag: o.image.tag }],
    generatorOptions: { disableNameSuffixHash: true },
    secretGenerator: secrets,
    ...(more.configMaps && {
      configMapGenerator: Object.entries(more.configMaps).map(([name, settings]) => ({
        name,
        literals: Object.entries(settings).map(([key, value]) => `${key}=${value}`),
      })),
    }),
    ...(more.patches && { patches: [{ target: { kind: 'DaemonSet' }, patch: JSON.stringify(more.patches) }] }),
  }
  await writeFile(join(dir, 'kustomization.yaml'), JSON.stringify(kustomization, null, 2))
}
