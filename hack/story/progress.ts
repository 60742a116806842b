/** Prints what goes on: one line when a step ends, and before that one every few seconds for a step that takes long. */
export interface Progress {
  line(text: string): void
  /** Runs a step; `say` tells what it is at. Returns what the work returns. */
  step<T>(title: string, work: (say: (detail: string) => void) => Promise<T>): Promise<T>
}

const quietMs = 1800
const repeatMs = 5000

/** A Progress that gives its lines to `print`. */
export function progressTo(print: (line: string) => void): Progress {
  return {
    line: print,
    async step(title, work) {
      const begun = performance.now()
      let detail = ''
      let printed = ''
      let printedAt = begun + quietMs - repeatMs
      const timer = setInterval(() => {
        const now = performance.now()
        const text = detail === '' ? title : `${title}: ${detail}`
        if (now - printedAt < (text === printed ? repeatMs : quietMs) || now - begun < quietMs) return
        print(`  … ${text} (${seconds(now - begun)})`)
        printed = text
        printedAt = now
      }, 200)
      try {
        const result = await work((text) => {
          detail = text
        })
        print(`  ✓ ${title} (${seconds(performance.now() - begun)})`)
        return result
      } catch (error) {
        print(`  ✗ ${title} (${seconds(performance.now() - begun)})`)
        throw error
      } finally {
        clearInterval(timer)
      }
    },
  }
}

export const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`
