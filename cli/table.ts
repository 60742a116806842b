/** The width of each column. */
export const widthsOf = (rows: string[][]): number[] =>
  (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)))

export const lineOf = (row: string[], widths: number[]): string =>
  row
    .map((cell, column) => cell.padEnd(widths[column] ?? 0))
    .join('   ')
    .trimEnd()

/** As kubectl shows ages: `90s`, `8m30s`, `35m`, `5h`, `2d`. */
export function span(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000))
  if (seconds < 120) return `${seconds}s`
  if (seconds < 600 && seconds % 60 > 0) return `${Math.floor(seconds / 60)}m${seconds % 60}s`
  if (seconds < 7200) return `${Math.floor(seconds / 60)}m`
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)}h`
  return `${Math.floor(seconds / 86_400)}d`
}

/** As `950 B`, `1.2 GB`, `324 MB`. */
export function size(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB']
  let unit = 0
  let amount = bytes
  for (; amount >= 1000 && unit < units.length - 1; unit++) amount /= 1000
  return `${unit === 0 || amount >= 100 ? Math.round(amount) : amount.toFixed(1)} ${units[unit]}`
}

interface Table<T> {
  head: string[]
  row: (item: T) => string[]
  /** Said when there is nothing to show. */
  none: string
}

/** Prints what comes in pages: as a table, or as one JSON array. */
export const printerOf = <T>(output: 'json' | undefined, table: Table<T>): { add(items: T[]): void; end(): void } =>
  output === 'json' ? jsonPrinter() : tablePrinter(table)

function jsonPrinter() {
  let before = '[\n'
  return {
    add(items: unknown[]) {
      for (const item of items) {
        process.stdout.write(`${before}  ${JSON.stringify(item)}`)
        before = ',\n'
      }
    },
    end: () => void process.stdout.write(before === '[\n' ? '[]\n' : '\n]\n'),
  }
}

/** Columns are as wide as the first page needs. */
function tablePrinter<T>({ head, row, none }: Table<T>) {
  let widths: number[] | undefined
  return {
    add(items: T[]) {
      const rows = items.map(row)
      if (!widths) rows.unshift(head)
      const fitting = widths ?? widthsOf(rows)
      widths = fitting
      for (const cells of rows) console.log(lineOf(cells, fitting))
    },
    end: () => void (widths ?? console.error(none)),
  }
}
