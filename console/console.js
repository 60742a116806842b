// The page of builds, rollouts and workers. It keeps the caller's token for as long as its tab is open, asks the hub with
// it what `shoal jobs`, `shoal logs` and `shoal workers` ask, deploys with it, and shows no more than that caller may
// see. Text from the hub is only ever set as text.
const $ = (selector) => document.querySelector(selector)
const identity = $('#identity')
const refreshMs = 3000

let left = new AbortController()
for (const input of identity.querySelectorAll('input')) input.value = sessionStorage.getItem(input.name) ?? ''

identity.addEventListener('submit', (event) => {
  event.preventDefault()
  for (const input of identity.querySelectorAll('input')) sessionStorage.setItem(input.name, input.value.trim())
  show()
})
$('#filter').addEventListener('input', show)
$('#filter').addEventListener('submit', (event) => event.preventDefault())
addEventListener('hashchange', show)
show()

/** Shows what the address names, anew; what was shown before stops asking. */
function show() {
  left.abort()
  left = new AbortController()
  const { signal } = left
  const [view, name] = location.hash.slice(1).split('/')
  const views = { builds, log, rollouts, workers }
  const chosen = views[view] ? view : 'builds'
  for (const main of document.querySelectorAll('main')) main.hidden = main.id !== chosen
  for (const link of document.querySelectorAll('nav a'))
    link.toggleAttribute('aria-current', link.hash === `#${chosen}`)
  if (!sessionStorage.getItem('token'))
    return say('Give a namespace and a token: kubectl create token <serviceaccount> -n <namespace>')
  say('')
  views[chosen](signal, decodeURIComponent(name ?? '')).catch((error) => signal.aborted || say(error.message))
}

function say(text) {
  $('#error').textContent = text
  $('#error').hidden = text === ''
}

async function ask(path, { signal, headers, method = 'GET', body }) {
  const authorization = `Bearer ${sessionStorage.getItem('token')}`
  const json = body && { 'content-type': 'application/json' }
  const answer = await fetch(path, {
    method,
    signal,
    headers: { ...json, ...headers, authorization },
    body: body && JSON.stringify(body),
  })
  if (answer.ok) return answer
  const { code, message } = await answer.json().catch(() => ({ code: answer.status, message: answer.statusText }))
  throw new Error(`${code}: ${message}`)
}

const jobsPath = (...names) =>
  ['/v1/jobs', sessionStorage.getItem('namespace'), ...names.map(encodeURIComponent)].join('/')

/** Again and again, while the view is open. */
async function repeat(signal, work) {
  while (!signal.aborted) {
    await work()
    await new Promise((resolve) => setTimeout(resolve, refreshMs))
  }
}

async function builds(signal) {
  const { pipeline, phase } = Object.fromEntries(new FormData($('#filter')))
  let pages = 1
  $('#older').onclick = () => {
    pages++
    load().catch((error) => say(error.message))
  }
  async function load() {
    const rows = []
    let next
    for (let page = 0; page < pages; page++) {
      const query = new URLSearchParams({ limit: '50' })
      if (pipeline) query.set('pipeline', pipeline)
      if (phase) query.set('phase', phase)
      if (next) query.set('continue', next)
      const answer = await (await ask(`${jobsPath()}?${query}`, { signal })).json()
      rows.push(...answer.items.map(jobRow))
      next = answer.continue
      if (!next) break
    }
    if (signal.aborted) return
    $('#jobs').replaceChildren(...rows)
    $('#older').hidden = !next
  }
  await repeat(signal, load)
}

function jobRow(job) {
  const { name, phase, ref, commit, queuedAt, startedAt, finishedAt, code, message, replicated } = job
  const link = Object.assign(document.createElement('a'), {
    href: `#log/${encodeURIComponent(name)}`,
    textContent: name,
  })
  const ended = finishedAt ?? (phase === 'Cancelled' ? queuedAt : undefined)
  const again = Object.assign(document.createElement('button'), { textContent: 'Rebuild' })
  again.onclick = async () => {
    again.disabled = true
    try {
      const answer = await (await ask(jobsPath(name, 'rebuild'), { method: 'POST' })).json()
      location.hash = `#log/${encodeURIComponent(answer.name)}`
    } catch (error) {
      say(error.message)
    }
  }
  const told = [code, message?.split('\n')[0]].filter(Boolean).join(': ')
  return row([
    link,
    badge(phase, replicated && phase === 'Replicating' ? `${phase} ${replicated}` : phase),
    ref.replace(/^refs\/(heads|tags)\//, ''),
    commit.slice(0, 12),
    `${span(Date.now() - Date.parse(queuedAt))} ago`,
    span(Date.parse(startedAt ?? ended ?? new Date()) - Date.parse(queuedAt)),
    startedAt ? span(Date.parse(finishedAt ?? new Date()) - Date.parse(startedAt)) : '',
    told,
    ['Succeeded', 'Failed', 'Cancelled'].includes(phase) ? again : '',
  ])
}

/** Follows a build's log; after an interruption it goes on where it was. */
async function log(signal, name) {
  const text = $('#log pre')
  $('#log h2').textContent = name
  $('#state').textContent = ''
  text.textContent = ''
  let [attempt, end, over] = [undefined, 0, false]
  while (!signal.aborted && !over) {
    const from = attempt === undefined ? '' : `&attempt=${attempt}&offset=${end}`
    const answer = await ask(`${jobsPath(name, 'log')}?follow=true${from}`, {
      signal,
      headers: { accept: 'application/x-ndjson' },
    })
    for await (const event of lines(answer.body)) {
      if (event.type === 'log') {
        if (attempt !== undefined && attempt !== event.attempt) text.append(`\n── attempt ${event.attempt} ──\n`)
        ;[attempt, end] = [event.attempt, event.end]
        const follows = innerHeight + scrollY >= document.body.scrollHeight - 40
        text.append(event.text)
        if (follows) scrollTo(0, document.body.scrollHeight)
      } else if (event.type === 'state') {
        const { phase, position, replicated, code, message } = event
        over = ['Succeeded', 'Failed', 'Cancelled'].includes(phase)
        $('#state').textContent = [phase, position && `${position} in line`, replicated, code, message?.split('\n')[0]]
          .filter(Boolean)
          .join(' · ')
      }
    }
    if (!over) await new Promise((resolve) => setTimeout(resolve, 500))
  }
}

async function* lines(body) {
  let rest = ''
  for await (const chunk of body.pipeThrough(new TextDecoderStream())) {
    const parts = (rest + chunk).split('\n')
    rest = parts.pop()
    for (const part of parts) if (part) yield JSON.parse(part)
  }
}

async function rollouts(signal) {
  const path = (...names) =>
    ['/v1/goals', sessionStorage.getItem('namespace'), ...names.map(encodeURIComponent)].join('/')
  // A choice that is being made outlives what is shown anew around it.
  const choices = new Map()
  $('#goals').replaceChildren()
  await repeat(signal, async () => {
    const { goals, artifacts } = await (await ask(path(), { signal })).json()
    const rows = goals.map((goal) => {
      const { name, effective, reason, message, wave, desired, healthy, failed } = goal
      const known = choices.get(name) ?? deployForm((artifact) => deploy(path(name, 'deploy'), name, artifact))
      choices.set(name, known)
      known.offer(artifacts, goal.artifact)
      const state = reason ? badge(reason, reason) : ''
      const counts = [`${healthy} of ${desired}`, failed ? String(failed) : '']
      return row([name, effective ?? '', state, wave ?? '', ...counts, message ?? '', known.form])
    })
    if (signal.aborted) return
    // What has the focus stays where it is: an open list would close.
    if (!$('#goals').contains(document.activeElement)) $('#goals').replaceChildren(...rows)
  })
}

async function deploy(path, goal, artifact) {
  if (!confirm(`Roll out ${artifact} by ${goal}?`)) return
  try {
    await ask(path, { method: 'POST', body: { artifact } })
    say('')
  } catch (error) {
    say(error.message)
  }
}

/** A list of artifacts and the button that deploys the chosen one; what is not everywhere yet says so. */
function deployForm(chosen) {
  const form = document.createElement('form')
  const list = document.createElement('select')
  const button = Object.assign(document.createElement('button'), { textContent: 'Deploy' })
  list.setAttribute('aria-label', 'artifact')
  form.append(list, button)
  form.addEventListener('submit', async (event) => {
    event.preventDefault()
    const { value } = list
    if (document.activeElement instanceof HTMLElement) document.activeElement.blur()
    await chosen(value)
  })
  let offered
  const offer = (artifacts, current) => {
    const now = JSON.stringify(artifacts)
    if (now === offered) return
    const { value } = list
    const options = artifacts.map(({ name, deployable }) =>
      Object.assign(document.createElement('option'), {
        value: name,
        textContent: deployable ? name : `${name} (not everywhere yet)`,
      }),
    )
    list.replaceChildren(...options)
    list.value = offered === undefined ? current : value
    offered = now
  }
  return { form, offer }
}

async function workers(signal) {
  await repeat(signal, async () => {
    const { now, workers: all, queue } = await (await ask('/v1/workers', { signal })).json()
    const { ready, blocked, running, oldestReadySeconds, wanted } = queue
    const ago = (time) => span(Date.parse(now) - Date.parse(time))
    $('#queue').textContent = [
      `${ready} ready`,
      `${blocked} waiting for a slot`,
      `${running} running`,
      oldestReadySeconds !== undefined && `the oldest waits ${span(oldestReadySeconds * 1000)}`,
      ...Object.entries(wanted).map(([size, count]) => `${count} ${size} wanted`),
    ]
      .filter(Boolean)
      .join(' · ')
    const rows = all.map((worker) =>
      row([
        worker.name,
        worker.class,
        badge(worker.state, worker.state),
        worker.job ? `${worker.job.namespace}/${worker.job.name}` : '',
        worker.job ? ago(worker.job.since) : '',
        `${ago(worker.lastSeen)} ago`,
        worker.isolation,
      ]),
    )
    $('#farm').replaceChildren(...rows)
  })
}

function row(cells) {
  const tr = document.createElement('tr')
  for (const cell of cells) {
    const td = document.createElement('td')
    td.append(cell)
    if (typeof cell === 'string' && cell.length > 40) td.className = 'message'
    tr.append(td)
  }
  return tr
}

const badge = (kind, text) =>
  Object.assign(document.createElement('span'), { className: `phase ${kind}`, textContent: text })

/** As kubectl shows ages. */
function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000))
  if (s < 120) return `${s}s`
  if (s < 7200) return `${Math.floor(s / 60)}m`
  return s < 172_800 ? `${Math.floor(s / 3600)}h` : `${Math.floor(s / 86_400)}d`
}
