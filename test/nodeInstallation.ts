import { join } from 'node:path'
import type { DatabaseServer } from '../hack/parts/database.ts'
import { until } from '../hack/parts/process.ts'
import type { StoreServer } from '../hack/parts/store.ts'
import { createAuthority, createServerCertificate } from '../runtime/certificates.ts'
import { generateSigningKey } from '../runtime/dsse.ts'
import { type Installation, writeOverlays } from './nodeOverlays.ts'
import type { RealNode } from './realNode.ts'

export interface InstallOptions {
  node: RealNode
  dir: string
  root: string
  image: { name: string; tag: string }
  database: DatabaseServer
  store: StoreServer
  bucket: string
  /** The agent's folder on the node. */
  dataDir: string
  /** Of the machine: its enrolment's. */
  env: Record<string, string>
  say: (what: string) => void
}

const region = 'node'

/**
 * Installs hub, workers, one region and the agent on one cluster, in the order of docs/guides/install.md, and waits until
 * all are Ready. Machines are enrolled for namespace `default`, with the label `app: web`.
 */
export async function install(o: InstallOptions): Promise<void> {
  const { node, database, store, say } = o
  const { kubectl } = node
  const onHost = (url: string) => url.replace('127.0.0.1', node.hostAddress)
  const authority = await createAuthority('shoal-test')
  const hubCertificate = await createServerCertificate(authority, ['shoal-hub.shoal-system.svc'])
  const fleetCertificate = await createServerCertificate(authority, ['shoal-fleet.shoal-region.svc'])
  const keys = generateSigningKey()
  const installation: Installation = {
    dir: join(o.dir, 'overlays'),
    root: o.root,
    image: o.image,
    region,
    hub: {
      secret: {
        'builds-database-url': onHost(await database.createSchema('builds')),
        'replication-database-url': onHost(await database.createSchema('replication')),
        'signing-key.pem': keys.privateKeyPem,
      },
      tls: { 'tls.crt': hubCertificate.certificate, 'tls.key': hubCertificate.key, 'ca.crt': authority.certificate },
    },
    fleet: { settings: {}, secret: {}, tls: {} },
    agent: { enrolment: {}, dataDir: o.dataDir },
  }
  await writeOverlays(installation)
  await kubectl('apply', '-k', join(installation.dir, 'hub'), '--server-side')
  await kubectl('wait', '--for=condition=Established', 'crd', '--all', '--timeout=30s')
  say('hub and workers are applied')
  await node.apply(...(await regionObjects(o, onHost(store.endpoint))))
  await kubectl('rollout', 'status', '-n', 'shoal-system', 'deployment/shoal-hub', '--timeout=120s')
  say('hub is Ready')

  const hubToken = async (...audience: string[]) =>
    kubectl('create', 'token', 'region', '-n', `shoal-region-${region}`, '--duration', '2h', ...audience)
  const ofHub = () => hubToken('--audience', 'shoal-hub')
  const token = await until('the hub lets the region in', ofHub, { timeoutMs: 60_000, intervalMs: 250 })
  const config = JSON.parse(await kubectl('config', 'view', '--raw', '-o', 'json'))
  config.users = [{ name: config.users[0].name, user: { token: await hubToken() } }]
  installation.fleet = {
    settings: {
      SHOAL_REGION: region,
      SHOAL_HUB_URL: 'https://shoal-hub.shoal-system.svc',
      SHOAL_AGENT_POLL: '1s',
      SHOAL_ANNOUNCE: '2s',
    },
    secret: {
      'database-url': onHost(await database.createSchema('fleet')),
      'access-key-id': store.accessKeyId,
      'secret-access-key': store.secretAccessKey,
      kubeconfig: JSON.stringify(config),
      'hub-token': token,
      'hub-ca.crt': authority.certificate,
      'hub-keys.pem': keys.publicKeyPem,
    },
    tls: { 'tls.crt': fleetCertificate.certificate, 'tls.key': fleetCertificate.key },
  }
  installation.agent.enrolment = {
    region,
    cluster: 'test',
    namespaces: ['default'],
    labels: { app: 'web' },
    env: o.env,
    fleetUrls: ['https://shoal-fleet.shoal-region.svc'],
    fleetCa: authority.certificate,
    hubKeys: [keys.publicKeyPem],
  }
  await writeOverlays(installation)
  await kubectl('apply', '-k', join(installation.dir, 'region'), '--server-side')
  await kubectl('apply', '-k', join(installation.dir, 'agent'), '--server-side')
  await kubectl('rollout', 'status', '-n', 'shoal-region', 'deployment/shoal-region', '--timeout=120s')
  say('region is Ready')
  await kubectl('rollout', 'status', '-n', 'shoal-agent', 'daemonset/shoal-agent', '--timeout=120s')
  await kubectl('rollout', 'status', '-n', 'shoal-system', 'deployment/shoal-worker', '--timeout=60s')
  say('agent and workers are Ready')
}

/** The home region, whose machines are the nodes of this cluster. */
async function regionObjects({ node, store, bucket }: InstallOptions, endpoint: string): Promise<object[]> {
  const jwks = await node.kubectl('get', '--raw', '/openid/v1/jwks')
  const { issuer } = JSON.parse(await node.kubectl('get', '--raw', '/.well-known/openid-configuration'))
  const credentials = { namespace: 'shoal-system', name: 'home-store' }
  return [
    {
      apiVersion: 'v1',
      kind: 'Secret',
      metadata: credentials,
      stringData: { accessKeyId: store.accessKeyId, secretAccessKey: store.secretAccessKey },
    },
    {
      apiVersion: 'shoal.dev/v1alpha1',
      kind: 'Region',
      metadata: { name: region },
      spec: {
        home: true,
        store: { endpoint, bucket, credentialsSecretRef: credentials },
        clusters: [{ name: 'test', issuer, jwks }],
      },
    },
  ]
}
