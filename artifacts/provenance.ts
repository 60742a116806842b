import { type SigningKey, sign } from '../runtime/dsse.ts'

/** The DSSE payload type of in-toto statements. */
const payloadType = 'application/vnd.in-toto+json'

/** What is said of how an artifact came to be. */
interface BuildRecord {
  namespace: string
  artifact: string
  pipeline: string
  /** `sha256:<hex>` */
  digest: string
  descriptorDigest: string
  source: { url: string; commit: string; ref: string }
  command: string[]
  worker: string
  startedAt: string
  finishedAt: string
}

/**
 * The in-toto statement (SLSA provenance v1) of a build, in a DSSE envelope signed by the hub. Equal records give equal
 * bytes, so two replicas of the hub make the same Artifact.
 */
export function signProvenance(record: BuildRecord, key: SigningKey): string {
  const { source } = record
  const statement = {
    _type: 'https://in-toto.io/Statement/v1',
    subject: [
      { name: `${record.namespace}/${record.artifact}`, digest: { sha256: hex(record.digest) } },
      { name: `${record.namespace}/${record.artifact}.torrent#info`, digest: { sha256: hex(record.descriptorDigest) } },
    ],
    predicateType: 'https://slsa.dev/provenance/v1',
    predicate: {
      buildDefinition: {
        buildType: 'https://shoal.dev/build/v1',
        externalParameters: {
          pipeline: `${record.namespace}/${record.pipeline}`,
          ref: source.ref,
          command: record.command,
        },
        resolvedDependencies: [{ uri: `git+${source.url}`, digest: { gitCommit: source.commit } }],
      },
      runDetails: {
        builder: { id: 'https://shoal.dev/worker/v1' },
        metadata: { invocationId: record.worker, startedOn: record.startedAt, finishedOn: record.finishedAt },
      },
    },
  }
  return sign(payloadType, Buffer.from(JSON.stringify(statement)), key)
}

const hex = (digest: string) => digest.slice('sha256:'.length)
