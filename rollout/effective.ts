import type { GoalState, Rollout } from '../api/goalState.ts'

type Status = NonNullable<GoalState['status']>

interface Hold {
  by: string
  to?: number | undefined
}

/** What puts a hold when a rollout fails. */
export const engineName = 'shoal'

export interface Choice {
  /** Its hash. */
  template: string
  rollback: boolean
}

/** What worked, other than this template: machines keep it on their disks, to go back to. */
export const fallbackOf = (
  { lastGood, goodBefore }: Pick<Status, 'lastGood' | 'goodBefore'>,
  template: string | undefined,
): Status['lastGood'] => [lastGood, goodBefore].find((each) => each && each.template !== template)

/**
 * Which template machines shall run, when it is another than now, or the same once more; undefined: what is effective
 * stays. A template that is held is not made effective: then it is the last that worked, however many bad ones came since.
 */
export function chooseTemplate(o: {
  /** What the spec says. */
  wanted: string
  status: Pick<Status, 'effective' | 'lastGood' | 'goodBefore' | 'history'>
  onFailure: Rollout['onFailure']
  holdOf: (template: string) => Hold | undefined
  /** The template of a revision. */
  templateOf: (revision: number) => string | undefined
}): Choice | undefined {
  const { wanted, status, onFailure, holdOf, templateOf } = o
  const { effective, lastGood, goodBefore, history = [] } = status
  const hold = holdOf(wanted)
  if (!hold) {
    const outcome = history.find(({ revision }) => revision === effective?.revision)?.outcome
    // one that failed and is held no more is tried again, under a number that no machine has failed at
    return effective?.template !== wanted || outcome === 'Failed' ? { template: wanted, rollback: false } : undefined
  }
  if (hold.by === engineName && onFailure === 'Pause') return undefined
  const worked = history.filter(({ outcome }) => outcome === 'Succeeded').map(({ template }) => template)
  const known = [hold.to && templateOf(hold.to), lastGood?.template, goodBefore?.template, ...worked]
  const template = known.find((each): each is string => Boolean(each) && each !== wanted && !holdOf(each as string))
  return template === undefined || template === effective?.template ? undefined : { template, rollback: true }
}
