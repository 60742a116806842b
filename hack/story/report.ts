/** What the story ends with, also as JSON (`--json`). */
export interface Report {
  stages: { name: string; seconds: number }[]
  machines: { name: string; region: string; version: string; healthy: boolean }[]
  /** originCopies: what the region's store gave its machines in the first deploy, over the artifact's size. */
  regions: { name: string; replicated: boolean; originCopies: number }[]
  /** The second push failed its health check and the fleet went back by itself. */
  rolledBack: boolean
  ok: boolean
}

/** The report as tables for people. */
export function reportText(report: Report): string {
  const total = report.stages.reduce((sum, stage) => sum + stage.seconds, 0)
  const stages = [
    ...report.stages.map((s) => [s.name, `${s.seconds.toFixed(1)} s`]),
    ['in all', `${total.toFixed(1)} s`],
  ]
  const regions = report.regions.map((region) => {
    const machines = report.machines.filter((machine) => machine.region === region.name)
    const healthy = machines.filter((machine) => machine.healthy).length
    const versions = [...new Set(machines.map((machine) => machine.version.slice(0, 12)))].join(', ')
    const copies = region.originCopies.toFixed(2)
    return [region.name, region.replicated ? 'yes' : 'no', copies, `${healthy}/${machines.length}`, versions]
  })
  return [
    table(['stage', 'time'], stages),
    table(['region', 'replicated', 'store read, × artifact', 'healthy', 'running'], regions),
  ].join('\n\n')
}

function table(head: string[], rows: string[][]): string {
  const widths = head.map((title, column) => Math.max(title.length, ...rows.map((row) => row[column]?.length ?? 0)))
  const line = (cells: string[]) => `  ${cells.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join('  ')}`.trimEnd()
  return [head, widths.map((width) => '─'.repeat(width)), ...rows].map(line).join('\n')
}

/** Times the stages of a story, one after another. */
export class Stopwatch {
  readonly stages: Report['stages'] = []
  #begun = performance.now()

  /** Ends the stage that has been running since the last call. */
  lap(name: string) {
    const now = performance.now()
    this.stages.push({ name, seconds: Math.round((now - this.#begun) / 10) / 100 })
    this.#begun = now
  }

  /** Leaves out what has passed since the last lap. */
  restart() {
    this.#begun = performance.now()
  }
}
