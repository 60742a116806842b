import { regionNamespace } from '../../api/regionApi.ts'

interface Manifest {
  apiVersion: string
  kind: 'Namespace' | 'ServiceAccount' | 'Role' | 'RoleBinding'
  metadata: { name: string; namespace?: string; labels: Record<string, string> }
  [field: string]: unknown
}

/**
 * What a region needs in the hub's API server, to be applied: its namespace, and a ServiceAccount `region` that may
 * read its goals and index there and write the goals' status. Nothing else, and nothing of another region.
 */
export function accessOf(region: string): Manifest[] {
  const namespace = regionNamespace(region)
  const labels = { 'app.kubernetes.io/managed-by': 'shoal', 'shoal.dev/region': region }
  const metadata = { name: 'region', namespace, labels }
  const rbac = 'rbac.authorization.k8s.io'
  return [
    { apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace, labels } },
    { apiVersion: 'v1', kind: 'ServiceAccount', metadata },
    {
      apiVersion: `${rbac}/v1`,
      kind: 'Role',
      metadata,
      rules: [
        { apiGroups: ['shoal.dev'], resources: ['regionalgoalstates'], verbs: ['get', 'list', 'watch'] },
        { apiGroups: ['shoal.dev'], resources: ['regionalgoalstates/status'], verbs: ['get', 'patch'] },
        { apiGroups: [''], resources: ['configmaps'], verbs: ['get', 'list', 'watch'] },
      ],
    },
    {
      apiVersion: `${rbac}/v1`,
      kind: 'RoleBinding',
      metadata,
      roleRef: { apiGroup: rbac, kind: 'Role', name: 'region' },
      subjects: [{ kind: 'ServiceAccount', name: 'region', namespace }],
    },
  ]
}

const serviceAccount = /^system:serviceaccount:shoal-region-([^:]+):region$/

/** The region a ServiceAccount speaks for; undefined when it is none of a region. */
export function regionOf(username: string): string | undefined {
  return serviceAccount.exec(username)?.[1]
}
