import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ownCgroups } from './cgroup.ts'

const test = suite('cgroup')
const mount = (root: string, at: string, type: string, options: string) =>
  `30 22 0:27 ${root} ${at} rw,nosuid,relatime shared:9 - ${type} ${type} ${options}`

test('under systemd on v2 it is the folder of the unit', () => {
  const found = ownCgroups(mount('/', '/sys/fs/cgroup', 'cgroup2', 'rw,nsdelegate'), '0::/system.slice/shoal.service\n')
  assert.equal(found, [{ version: 2, path: '/sys/fs/cgroup/system.slice/shoal.service', controllers: [] }])
})

test('in a container with a namespace of its own it is the root of the mount', () => {
  const found = ownCgroups(mount('/', '/sys/fs/cgroup', 'cgroup2', 'rw'), '0::/\n')
  assert.equal(found, [{ version: 2, path: '/sys/fs/cgroup', controllers: [] }])
})

test('in a container without one, whose mount shows only its own part, it is that part', () => {
  const mounts = [
    mount('/docker/abc', '/sys/fs/cgroup/pids', 'cgroup', 'rw,pids'),
    mount('/docker/abc', '/sys/fs/cgroup/memory', 'cgroup', 'rw,memory'),
    mount('/docker/abc', '/sys/fs/cgroup/cpu,cpuacct', 'cgroup', 'rw,cpu,cpuacct'),
  ]
  const own = ['5:cpu,cpuacct:/docker/abc', '4:memory:/docker/abc/jobs', '3:pids:/docker/abc', '']
  assert.equal(ownCgroups(mounts.join('\n'), own.join('\n')), [
    { version: 1, path: '/sys/fs/cgroup/pids', controllers: ['pids'] },
    { version: 1, path: '/sys/fs/cgroup/memory/jobs', controllers: ['memory'] },
  ])
})

test('a mount that does not show our part is not used', () => {
  assert.equal(ownCgroups(mount('/other', '/sys/fs/cgroup/pids', 'cgroup', 'rw,pids'), '3:pids:/docker/abc\n'), [])
  assert.equal(ownCgroups(mount('/', '/sys/fs/cgroup', 'cgroup2', 'rw'), '0::/../..\n'), [])
})

test('of v1 and v2 side by side both are found', () => {
  const mounts = [
    mount('/', '/sys/fs/cgroup', 'tmpfs', 'rw,mode=755'),
    mount('/', '/sys/fs/cgroup/unified', 'cgroup2', 'rw'),
    mount('/', '/sys/fs/cgroup/systemd', 'cgroup', 'rw,xattr,name=systemd'),
    mount('/', '/sys/fs/cgroup/pids', 'cgroup', 'rw,pids'),
  ]
  assert.equal(ownCgroups(mounts.join('\n'), '9:name=systemd:/a\n8:pids:/a\n0::/a\n'), [
    { version: 2, path: '/sys/fs/cgroup/unified/a', controllers: [] },
    { version: 1, path: '/sys/fs/cgroup/pids/a', controllers: ['pids'] },
  ])
})

test.run()
