import { chmod, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type Browser, chromium, type Page } from 'playwright-core'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { GoalState } from '../api/goalState.ts'
import { type TemporaryDir, temporaryDir } from '../hack/parts/process.ts'
import { core } from '../runtime/core.ts'
import { addPipeline, ended } from './pipelines.ts'
import { bringUp, type TestSystem } from './system.ts'

const { SHOAL_TEST_BROWSER: executablePath } = process.env
const test = suite('the console in a browser')
let up: TestSystem
let browser: Browser
let page: Page
let shared: TemporaryDir
const complaints: string[] = []

test.before(async () => {
  shared = await temporaryDir('shoal-builds')
  await chmod(shared.path, 0o755)
  up = await bringUp()
  // As root it has no sandbox; it shows nothing but our own page.
  browser = await chromium.launch({ executablePath: executablePath ?? '', args: ['--no-sandbox'] })
  page = await browser.newPage({ ignoreHTTPSErrors: true })
  page.setDefaultTimeout(20_000)
  page.on('pageerror', (error) => complaints.push(String(error)))
  page.on('console', (message) => {
    // That a request was refused is shown on the page.
    if (message.type() === 'error' && !/status of 40[13]/.test(message.text())) complaints.push(message.text())
  })
})
test.after(async () => {
  await browser.close()
  await up[Symbol.asyncDispose]()
  await shared[Symbol.asyncDispose]()
})

async function use(namespace: string, token: string) {
  await page.fill('input[name=namespace]', namespace)
  await page.fill('input[name=token]', token)
  await page.click('#identity button')
}
const row = (job: string) =>
  page.locator('#jobs tr').filter({ has: page.getByRole('link', { name: job, exact: true }) })
const alarm = (text: RegExp) => page.getByRole('alert').filter({ hasText: text }).waitFor()
const state = (phase: string) => page.locator('#state').filter({ hasText: phase }).waitFor()

test('it asks for who one is, and shows nothing to whom the API server wouldn’t', async () => {
  const { hub, namespace } = up.system.state
  await page.goto(hub.url)
  await alarm(/kubectl create token/)
  await use(namespace, 'nonsense')
  await alarm(/Unauthorized/)
  await use(namespace, await up.system.hubServer.serviceAccountToken(namespace, 'stranger'))
  await alarm(/Forbidden/)
  assert.is(await page.locator('#jobs tr').count(), 0)
})

test('a build is followed from the line to its end, its log as it is printed; what it prints is text', () =>
  up.explain(async () => {
    const { namespace } = up.system.state
    const gate = join(shared.path, 'go')
    const pipeline = await addPipeline(up, 'seen')
    const said = '<img src=x onerror="document.title=1">'
    const script = `echo '${said}'; until [ -e ${gate} ]; do sleep 0.1; done; mkdir out; echo 1 >out/a; echo the end`
    const { job, commit } = await pipeline.push(script)
    await use(namespace, up.system.hubServer.token)
    await row(job)
      .filter({ hasText: commit.slice(0, 12) })
      .getByText('Running')
      .waitFor()

    await page.getByRole('link', { name: 'Workers' }).click()
    const busy = page.locator('#farm tr').filter({ hasText: `${namespace}/${job}` })
    await busy.getByText('busy').waitFor()
    await page.locator('#queue').filter({ hasText: '0 ready · 0 waiting for a slot · 1 running' }).waitFor()

    await page.getByRole('link', { name: 'Builds' }).click()
    await row(job).getByRole('link').click()
    await page.locator('#log pre').filter({ hasText: said }).waitFor()
    await state('Running')
    await writeFile(gate, '')
    await page.locator('#log pre').filter({ hasText: 'the end' }).waitFor()
    await state('Succeeded')
    assert.equal([await page.locator('#log img').count(), await page.title()], [0, 'Shoal'])
  }))

test('one that ended is built again by a button; the list is narrowed by pipeline and phase', () =>
  up.explain(async () => {
    const pipeline = await addPipeline(up, 'broken')
    const { job } = await pipeline.push('echo no such luck; exit 3')
    await ended(up, job)
    await page.getByRole('link', { name: 'Builds' }).click()
    await page.fill('input[name=pipeline]', 'broken')
    await row(job).getByText('BuildFailed').waitFor()
    await page.locator('#jobs tr').nth(1).waitFor({ state: 'detached' })
    await row(job).getByRole('button', { name: 'Rebuild' }).click()
    await page
      .locator('#log h2')
      .filter({ hasText: `${job}-2` })
      .waitFor()
    await state('BuildFailed')
    await page.goBack()
    await row(`${job}-2`).waitFor()
    await page.selectOption('select[name=phase]', 'Succeeded')
    await page.locator('#jobs tr').first().waitFor({ state: 'detached' })
    await page.fill('input[name=pipeline]', '')
    await page.locator('#jobs').getByText('seen-').waitFor()
    assert.equal(complaints, [])
  }))

test('a release is deployed by a button, as whoever the token is', () =>
  up.explain(async () => {
    const { namespace } = up.system.state
    const { cluster } = up.kube
    const pipeline = await addPipeline(up, 'released')
    const jobs: string[] = []
    for (const version of [1, 2]) {
      const { job } = await pipeline.push(`mkdir out; echo ${version} >out/a`)
      await ended(up, job)
      jobs.push(job)
    }
    const [first = '', second = ''] = jobs
    const spec = { artifactRef: { name: first }, activation: { command: ['./a'] } }
    await cluster.apply(GoalState, GoalState.make({ name: 'released', namespace }, spec), { fieldManager: 'test' })
    const metadata = { name: 'reader', namespace }
    const rules = [{ apiGroups: ['shoal.dev'], resources: ['goalstates', 'artifacts'], verbs: ['get', 'list'] }]
    await cluster.create(core.Role, { metadata, rules })
    await cluster.create(core.RoleBinding, {
      metadata,
      roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: 'reader' },
      subjects: [{ kind: 'ServiceAccount', name: 'reader', namespace }],
    })
    const wanted = async () =>
      GoalState.parse(await cluster.get(GoalState, namespace, 'released')).spec.artifactRef.name

    page.on('dialog', (dialog) => dialog.accept())
    await page.getByRole('link', { name: 'Rollouts' }).click()
    const goal = page.locator('#goals tr').filter({ hasText: 'released' })
    const deploy = async () => {
      await goal.getByRole('combobox').selectOption(second)
      await goal.getByRole('button', { name: 'Deploy' }).click()
    }
    await use(namespace, await up.system.hubServer.serviceAccountToken(namespace, 'reader'))
    await goal.locator('td').nth(1).filter({ hasText: first }).waitFor()
    await deploy()
    await alarm(/Forbidden.*patch/)
    assert.is(await wanted(), first)
    await use(namespace, up.system.hubServer.token)
    await deploy()
    await goal.locator('td').nth(1).filter({ hasText: second }).waitFor()
    await goal.getByText('RolledOut').waitFor()
    assert.is(await wanted(), second)
    assert.equal(complaints, [])
  }))

if (executablePath) test.run()
else console.log('skipped: SHOAL_TEST_BROWSER names no Chromium')
