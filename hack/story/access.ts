import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parseAllDocuments } from 'yaml'
import { mirrorNamespace, regionNamespace } from '../../api/regionApi.ts'
import type { ApiServer } from '../parts/apiServer.ts'

const root = join(import.meta.dirname, '../..')
export const hubNamespace = 'shoal-system'

interface Manifest {
  apiVersion: string
  kind: string
  metadata: { name: string; namespace?: string }
  [field: string]: unknown
}

/** Server-side apply of any built-in object, as the administrator. */
async function applyManifest(server: ApiServer, manifest: Manifest): Promise<void> {
  const { apiVersion, kind, metadata } = manifest
  const base = apiVersion.includes('/') ? `/apis/${apiVersion}` : `/api/${apiVersion}`
  const scope = metadata.namespace === undefined ? '' : `/namespaces/${metadata.namespace}`
  const path = `${base}${scope}/${kind.toLowerCase()}s/${metadata.name}?fieldManager=demo&force=true`
  await server.request('PATCH', path, manifest, 'application/apply-patch+yaml')
}

const rbac = 'rbac.authorization.k8s.io'
const roleBinding = (at: { name: string; namespace: string }, role: [kind: string, name: string], account: string) => ({
  apiVersion: `${rbac}/v1`,
  kind: 'RoleBinding',
  metadata: at,
  roleRef: { apiGroup: rbac, kind: role[0], name: role[1] },
  subjects: [{ kind: 'ServiceAccount', name: account, namespace: at.namespace }],
})

/** The hub's and its workers' rights, as manifests/hub/rbac.yaml grants them; ClusterRole `shoal-region` for regions. */
export async function grantRights(server: ApiServer): Promise<void> {
  await server.createNamespace(hubNamespace)
  for (const base of ['hub', 'region']) {
    const text = await readFile(join(root, 'manifests', base, 'rbac.yaml'), 'utf8')
    for (const document of parseAllDocuments(text)) {
      const manifest = document.toJS() as Manifest
      // On this one server each region's rights end at its own mirror: bound below, by region.
      if (base === 'region' && manifest.kind !== 'ClusterRole') continue
      if (!manifest.kind.startsWith('Cluster')) manifest.metadata.namespace = hubNamespace
      await applyManifest(server, manifest)
    }
  }
}

/** Kubeconfigs and tokens of one region: in the hub's API server and in its own, which may be the same. */
export interface RegionAccess {
  hubKubeconfig: string
  hubToken: string
  kubeconfig: string
}

/** Makes the region's identities: `region` in the hub's namespace of it, `shoal-region` in its mirror. */
export async function regionAccess(hub: ApiServer, own: ApiServer, region: string): Promise<RegionAccess> {
  const [outer, inner] = [regionNamespace(region), mirrorNamespace(region)]
  const [hubOwn, hubToken, ownToken] = await Promise.all([
    hub.serviceAccountToken(outer, 'region'),
    hub.serviceAccountToken(outer, 'region', ['shoal-hub']),
    own.serviceAccountToken(inner, 'shoal-region'),
  ])
  await applyManifest(
    own,
    roleBinding({ name: 'shoal-region', namespace: inner }, ['ClusterRole', 'shoal-region'], 'shoal-region'),
  )
  await applyManifest(own, {
    apiVersion: `${rbac}/v1`,
    kind: 'ClusterRoleBinding',
    metadata: { name: `shoal-region-reviews-${region}` },
    roleRef: { apiGroup: rbac, kind: 'ClusterRole', name: 'system:auth-delegator' },
    subjects: [{ kind: 'ServiceAccount', name: 'shoal-region', namespace: inner }],
  })
  return {
    hubKubeconfig: await hub.kubeconfigFor(hubOwn, outer),
    hubToken,
    kubeconfig: await own.kubeconfigFor(ownToken, inner),
  }
}

/** The tenant's namespace, and in it the ServiceAccount `deployer` that may write GoalStates: the ConfigRepo's. */
export async function makeTenant(server: ApiServer, namespace: string): Promise<void> {
  await server.createNamespace(namespace)
  const metadata = { name: 'deployer', namespace }
  await applyManifest(server, { apiVersion: 'v1', kind: 'ServiceAccount', metadata })
  const rules = [{ apiGroups: ['shoal.dev'], resources: ['goalstates'], verbs: ['get', 'create', 'patch'] }]
  await applyManifest(server, { apiVersion: `${rbac}/v1`, kind: 'Role', metadata, rules })
  await applyManifest(server, roleBinding(metadata, ['Role', 'deployer'], 'deployer'))
}

/** A Secret of plain texts. */
export async function putSecret(
  server: ApiServer,
  at: { namespace: string; name: string },
  stringData: Record<string, string>,
): Promise<void> {
  await applyManifest(server, { apiVersion: 'v1', kind: 'Secret', metadata: at, stringData })
}
