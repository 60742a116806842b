/** What the API client needs to know of a resource. Our own kinds (`api/kind.ts`) are resources too. */
export interface Resource {
  group: string
  version: string
  kind: string
  plural: string
  namespaced: boolean
}

const resource = (group: string, version: string, kind: string, plural: string, namespaced = true): Resource => ({
  group,
  version,
  kind,
  plural,
  namespaced,
})

/** The built-in resources Shoal uses. */
export const core = {
  ConfigMap: resource('', 'v1', 'ConfigMap', 'configmaps'),
  CustomResourceDefinition: resource(
    'apiextensions.k8s.io',
    'v1',
    'CustomResourceDefinition',
    'customresourcedefinitions',
    false,
  ),
  Deployment: resource('apps', 'v1', 'Deployment', 'deployments'),
  Event: resource('events.k8s.io', 'v1', 'Event', 'events'),
  Lease: resource('coordination.k8s.io', 'v1', 'Lease', 'leases'),
  Namespace: resource('', 'v1', 'Namespace', 'namespaces', false),
  Pod: resource('', 'v1', 'Pod', 'pods'),
  Role: resource('rbac.authorization.k8s.io', 'v1', 'Role', 'roles'),
  RoleBinding: resource('rbac.authorization.k8s.io', 'v1', 'RoleBinding', 'rolebindings'),
  Secret: resource('', 'v1', 'Secret', 'secrets'),
  ServiceAccount: resource('', 'v1', 'ServiceAccount', 'serviceaccounts'),
  SubjectAccessReview: resource('authorization.k8s.io', 'v1', 'SubjectAccessReview', 'subjectaccessreviews', false),
  TokenReview: resource('authentication.k8s.io', 'v1', 'TokenReview', 'tokenreviews', false),
} as const

/** `group/version`, or `v1` for the core group. */
export const apiVersionOf = ({ group, version }: Resource): string => (group === '' ? version : `${group}/${version}`)
