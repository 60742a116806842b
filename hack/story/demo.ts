/** The command `hack/demo`: reads the arguments and runs the keeper (who holds the system up) and the story. */
import { existsSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { Command, InvalidArgumentError } from 'commander'
import { hints } from './hints.ts'
import { endKeeper, type Keeper, keepUp } from './keeperClient.ts'
import { Kube } from './kube.ts'
import { progressTo, seconds } from './progress.ts'
import { type Report, reportText } from './report.ts'
import { logsDir, readState, type Shape, type SystemState } from './state.ts'
import { playStory } from './story.ts'

const root = join(import.meta.dirname, '../..')
const dir = join(root, '.shoal/demo')
const progress = progressTo((line) => console.log(line))

interface Options {
  regions: number
  machines: number
  json?: string
  repo?: string
  build?: string
  output?: string
  run?: string
  small?: boolean
}

const regionNames = ['eu-west', 'eu-north', 'us-east', 'us-west', 'ap-south', 'ap-east', 'sa-east', 'af-south']

const count = (most: number) => (text: string) => {
  const value = Number(text)
  if (!Number.isInteger(value) || value < 1 || value > most) throw new InvalidArgumentError(`want 1 to ${most}`)
  return value
}

const program: Command = new Command('demo')
  .description(
    'Brings up everything on this machine, plays the story from a push to a running binary, and takes it down.\n' +
      'On a terminal it stays up until Ctrl-C.',
  )
  .option('--regions <n>', 'regions, each with its own store and fleet server', count(regionNames.length), 5)
  .option('--machines <n>', 'machines per region', count(50), 4)
  .option('--json <file>', 'write what happened as JSON too')
  .option('--repo <dir|url>', 'deploy the last commit of this repository instead of the demo’s application')
  .option('--build <command>', 'with --repo: how to build it, run by sh in the checkout')
  .option('--output <path>', 'with --repo: the file or folder the build leaves')
  .option(
    '--run <command>',
    'with --repo: what machines start, run by sh in the release’s folder; without it they hold the release and start `sleep infinity`',
  )
  .option('--small', 'an application of a few MB instead of 150')
  .action(() => all(options()))
  .showHelpAfterError()
program
  .command('up')
  .description('bring it up and leave it running; . .shoal/demo/env to use it')
  .action(() => up(options()))
program
  .command('story')
  .description('play the story on what is up')
  .action(() => story(options()))
program.command('down').description('take it down').action(down)

function options(): Options {
  const given = program.opts<Options>()
  if (given.repo !== undefined && (given.build === undefined || given.output === undefined))
    program.error('--repo needs --build and --output')
  if (given.repo === undefined && (given.build ?? given.output ?? given.run) !== undefined)
    program.error('--build, --output and --run need --repo')
  return given
}

function shapeOf({ regions, machines, repo, build, output, run, small = false }: Options): Shape {
  const repository = repo !== undefined && existsSync(repo) ? resolve(repo) : repo
  const own = repository === undefined ? undefined : { repository, build: build ?? '', output: output ?? '', run }
  return { regions: regionNames.slice(0, regions), machinesPerRegion: machines, small, own }
}

async function all(given: Options) {
  const keeper = await bringUp(given)
  let failure: unknown
  const stop = Promise.withResolvers<void>()
  process.once('SIGINT', stop.resolve).once('SIGTERM', stop.resolve)
  try {
    const interrupted = stop.promise.then(() => undefined)
    const report = await Promise.race([tell(keeper.state, given.json), interrupted])
    if (report && process.stdout.isTTY) {
      console.log(hints(keeper.state))
      await stop.promise
    }
    if (report?.ok !== true) process.exitCode = report ? 1 : 130
  } catch (error) {
    failure = error
  }
  await progress.step('taking everything down', () => keeper.end())
  if (failure !== undefined) throw failure
  process.exit()
}

async function up(given: Options) {
  const keeper = await bringUp(given)
  keeper.leave()
  console.log(hints(keeper.state))
}

async function story({ json }: Options) {
  const state = readState(dir)
  if (state === undefined) program.error('nothing is up; start it with: ./hack/demo up')
  const report = await tell(state, json)
  if (!report.ok) process.exitCode = 1
}

async function down() {
  await progress.step('taking everything down', () => endKeeper(dir))
}

async function bringUp(given: Options): Promise<Keeper> {
  const shape = shapeOf(given)
  const machines = `${shape.regions.length} regions of ${shape.machinesPerRegion} machines`
  console.log(`Bringing up a hub, 2 workers and ${machines}; logs are in ${logsDir(dir)}`)
  const keeper = await keepUp({ dir, shape, print: (line) => console.log(line) })
  console.log(`  everything is up after ${seconds(keeper.state.startSeconds * 1000)}`)
  return keeper
}

async function tell(state: SystemState, json: string | undefined): Promise<Report> {
  await using cluster = new Kube(state, progress)
  const played = await playStory({ state, cluster, progress })
  const report = { ...played, stages: [{ name: 'bring up', seconds: state.startSeconds }, ...played.stages] }
  console.log(`\n${reportText(report)}\n`)
  if (json !== undefined) await writeFile(json, `${JSON.stringify(report, undefined, 2)}\n`)
  return report
}

try {
  await program.parseAsync()
} catch (error) {
  console.error(`\n${error instanceof Error ? error.message : error}\nLogs are in ${logsDir(dir)}.`)
  process.exit(1)
}
