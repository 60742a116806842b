import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { chmod, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { temporaryDir, until } from '../hack/parts/process.ts'
import { createLogger } from '../runtime/log.ts'
import { takeBuildUser } from './buildUser.ts'
import { lockFolder } from './lock.ts'

const test = suite('build user')
const temporary = await temporaryDir('shoal-user')
await chmod(temporary.path, 0o711)
test.after(async () => {
  await temporary[Symbol.asyncDispose]()
})
// Of no worker's range.
const uid = 20_400
const folder = join(temporary.path, 'own')
await mkdir(folder, { mode: 0o711 })
const log = createLogger('test', 'silent')
const take = (secrets: string[] = []) => takeBuildUser({ uids: { first: uid, count: 1 }, folder, secrets, log })
const codeOf = (promise: Promise<unknown>) =>
  promise.then(
    () => 'none',
    (error: { code: string }) => error.code,
  )

test('what an earlier build of the uid left is gone before the uid is taken', async () => {
  const script = `umask 077; mkdir /tmp/shoal-left-${uid}; echo x >/tmp/shoal-left-${uid}/file; ipcmk -M 4096; ipcmk -Q
    (trap '' TERM HUP; exec setsid sleep 98640) >/dev/null 2>&1 &`
  execFileSync('/bin/sh', ['-c', script], { uid, gid: uid, cwd: '/', stdio: 'ignore' })
  const left = () => [
    existsSync(`/tmp/shoal-left-${uid}`),
    ...['shm', 'msg'].map((table) => new RegExp(`\\s${uid}\\s`).test(readFileSync(`/proc/sysvipc/${table}`, 'utf8'))),
  ]
  assert.equal(left(), [true, true, true])
  await using user = await take()
  assert.is(user.uid, uid)
  assert.equal(left(), [false, false, false])
  await until(
    'it has no process',
    () =>
      execFileSync('sh', ['-c', `ps -o stat= -u ${uid} | grep -vc ^Z || :`])
        .toString()
        .trim() === '0',
  )
})

test('it is another’s as long as that one has it, here or wherever the workspace is shared', async () => {
  const first = await take()
  assert.is(await codeOf(take()), 'ConfigInvalid')
  await first[Symbol.asyncDispose]()
  const elsewhere = await lockFolder(join(temporary.path, `.uid-${uid}`), { waitMs: 0 })
  assert.ok(elsewhere)
  assert.is(await codeOf(take()), 'ConfigInvalid')
  elsewhere[Symbol.dispose]()
  await using again = await take()
  assert.is(again.uid, uid)
})

test('a secret that it can read is refused', async () => {
  const secret = join(temporary.path, 'token')
  await writeFile(secret, 'x', { mode: 0o644 })
  assert.is(await codeOf(take([secret])), 'ConfigInvalid')
  await chmod(secret, 0o600)
  await using user = await take([secret])
  assert.is(user.uid, uid)
})

if (process.getuid?.() === 0) test.run()
else console.log('only root has builds run as users of their own')
