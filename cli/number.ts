import { InvalidArgumentError } from 'commander'

/** The number of an option that takes one from 1 on. */
export function atLeastOne(text: string): number {
  const n = Number(text)
  if (!Number.isInteger(n) || n < 1) throw new InvalidArgumentError('want a number from 1 on')
  return n
}
