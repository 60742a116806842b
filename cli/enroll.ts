import { readFile, writeFile } from 'node:fs/promises'
import { type Command, InvalidArgumentError } from 'commander'
import type { Enrolment } from '../api/fleetApi.ts'
import { enrolMachine } from '../fleet/machines.ts'
import { generateSigningKey } from '../runtime/dsse.ts'
import { Database } from '../runtime/sql.ts'

interface Options {
  region: string
  databaseUrl: string
  fleetUrl: string[]
  fleetCa: string
  hubKeys: string
  namespace: string[]
  label: Record<string, string>
  env: Record<string, string>
  out: string
}

const pair = (text: string, before: Record<string, string>) => {
  const [, name, value] = /^([^=]+)=(.*)$/s.exec(text) ?? []
  if (name === undefined || value === undefined) throw new InvalidArgumentError('want NAME=value')
  return { ...before, [name]: value }
}

/** `shoal enroll MACHINE`: makes a plain host a member of a region; run where the region's database can be reached. */
export function addEnroll(program: Command): void {
  program
    .command('enroll <machine>')
    .description('give a plain host a key of its own, and write the enrolment file its agent starts from')
    .requiredOption('--region <name>', 'the region it belongs to')
    .requiredOption('--database-url <url>', 'the region’s database', process.env.SHOAL_FLEET_DATABASE_URL)
    .requiredOption('--fleet-url <url...>', 'where its agent reaches the fleet server')
    .requiredOption('--fleet-ca <file>', 'who signed the fleet server’s certificate')
    .requiredOption('--hub-keys <file>', 'the hub’s public keys')
    .requiredOption('--namespace <name...>', 'the tenants it serves')
    .option('--label <name=value>', 'what machineSelectors see; may be repeated', pair, {})
    .option('--env <name=value>', 'variables for its applications; may be repeated', pair, {})
    .option('--out <file>', 'where the enrolment is written', 'enrolment.json')
    .action(async (machine: string, options: Options) => {
      const { region, namespace: namespaces, label: labels, env, fleetUrl: fleetUrls } = options
      const { privateKeyPem, publicKeyPem } = generateSigningKey()
      const enrolment: Enrolment = {
        region,
        machine,
        key: privateKeyPem,
        namespaces,
        labels,
        env,
        fleetUrls,
        fleetCa: await readFile(options.fleetCa, 'utf8'),
        hubKeys: [await readFile(options.hubKeys, 'utf8')],
      }
      // The file first: a machine that the region knows and that lost its key would be worse than a file too many.
      await writeFile(options.out, `${JSON.stringify(enrolment, undefined, 2)}\n`, { mode: 0o600, flag: 'wx' })
      await using database = new Database(options.databaseUrl, { connectionLimit: 1 })
      await enrolMachine(database, { name: machine, publicKey: publicKeyPem, labels, namespaces })
      console.log(`${options.out}: take it to ${machine}, readable by its agent alone (SHOAL_ENROLMENT)`)
    })
}
