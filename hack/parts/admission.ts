import { readFile } from 'node:fs/promises'
import { resolve } from 'node:path'
import { parseAllDocuments } from 'yaml'
import { z } from 'zod'
import type { ApiServer } from './apiServer.ts'

const file = resolve(import.meta.dirname, '../../manifests/hub/admission.yaml')

const object = z.looseObject({
  apiVersion: z.string(),
  kind: z.enum(['ValidatingAdmissionPolicy', 'ValidatingAdmissionPolicyBinding']),
  metadata: z.looseObject({ name: z.string() }),
})
const plural = {
  ValidatingAdmissionPolicy: 'validatingadmissionpolicies',
  ValidatingAdmissionPolicyBinding: 'validatingadmissionpolicybindings',
}

/** Applies the hub's admission policies. The server takes a moment until it goes by them. */
export async function applyAdmission(server: ApiServer): Promise<void> {
  for (const document of parseAllDocuments(await readFile(file, 'utf8'))) {
    const { apiVersion, kind, metadata, ...rest } = object.parse(document.toJS())
    const path = `/apis/${apiVersion}/${plural[kind]}/${metadata.name}?fieldManager=shoal&force=true`
    await server.request('PATCH', path, { apiVersion, kind, metadata, ...rest }, 'application/apply-patch+yaml')
  }
}
