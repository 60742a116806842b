import { ShoalError } from '../api/errors.ts'

/** Bytes per second at an hour of the day, 0 to 23; `Infinity` for no limit. */
export type RateSchedule = (hour: number) => number

/**
 * `100000000`, or by hours: `8-20:50000000,20-24:100000000,200000000`. The first part that fits counts; hours may pass
 * midnight, as in `22-6`; where none fits there is no limit.
 * @throws ShoalError `ConfigInvalid`
 */
export function parseRateSchedule(text: string): RateSchedule {
  const parts = text.split(',').map((part) => {
    const [, from, to, rate] = /^(?:(\d\d?)-(\d\d?):)?(\d+)$/.exec(part.trim()) ?? []
    const [begin, end] = [Number(from ?? 0), Number(to ?? 24)]
    if (rate === undefined || Number(rate) === 0 || begin > 23 || end > 24 || begin === end)
      throw new ShoalError(
        'ConfigInvalid',
        `${JSON.stringify(part)} is not a limit: want bytes a second, as 100000000, or with hours, as 8-20:100000000.`,
      )
    return { begin, end, bytesPerSecond: Number(rate) }
  })
  return (hour) => {
    const fits = parts.find(({ begin, end }) =>
      begin < end ? hour >= begin && hour < end : hour >= begin || hour < end,
    )
    return fits?.bytesPerSecond ?? Number.POSITIVE_INFINITY
  }
}
