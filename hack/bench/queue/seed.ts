import type { Database, SqlValue } from '../../../runtime/sql.ts'

const perStatement = 2000

/** Fills a queue as pushes would have: jobs that wait, each with its slot, over 100 pipelines, and finished ones. */
export async function seedJobs(database: Database, { waiting, history }: { waiting: number; history: number }) {
  const pipelines = Array.from({ length: 100 }, (_, n) => ['demo', `p${n}`, 100_000])
  await database.execute('INSERT INTO pipeline (namespace, name, max_jobs) VALUES ?', [pipelines])
  const insert = async (from: number, count: number, phase: 'Queued' | 'Succeeded') => {
    for (let n = from; n < from + count; n += perStatement) {
      const ids = Array.from({ length: Math.min(perStatement, from + count - n) }, (_, i) => n + i)
      const rows: SqlValue = ids.map((id) => {
        const commit = id.toString(16).padStart(40, '0')
        return [id, 'demo', `p${id % 100}`, commit, 1, `p-${commit}`, 'refs/heads/main', 0, id, '{}', id]
      })
      await database.execute(
        `INSERT INTO job (id, namespace, pipeline, commit_id, n, name, ref, priority, created_at_ms, facts, updated_at_ms)
         VALUES ?`,
        [rows],
      )
      if (phase === 'Succeeded') {
        await database.execute(
          `INSERT INTO outcome (job_id, phase, worker, started_at_ms, built_at_ms, finished_at_ms, updated_at_ms) VALUES ?`,
          [ids.map((id) => [id, phase, 'w1', id, id, id, id])],
        )
        continue
      }
      await database.execute('INSERT INTO ready VALUES ?', [ids.map((id) => [0, id, id])])
      await database.execute('INSERT INTO slot (namespace, pipeline, slot, job_id, poll_id) VALUES ?', [
        ids.map((id) => ['demo', `p${id % 100}`, id, id, id]),
      ])
    }
  }
  await insert(1, history, 'Succeeded')
  await insert(history + 1, waiting, 'Queued')
}
