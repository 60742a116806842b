import type { GoalStateRevision, verbs } from '../api/goalState.ts'

type Status = NonNullable<GoalStateRevision['status']>

/** What a person, or the engine, says of a revision. */
export interface Word {
  verb: (typeof verbs)[number]
  by: string
  /** RFC 3339. */
  at: string
  why: string
  /** From 1. For Approve and Promote. */
  wave?: number | undefined
  /** The revision to go back to. For Hold. */
  to?: number | undefined
}

/** The merge patch that says it, for a revision as it was read; another's word meanwhile makes it a conflict. */
export function say({ metadata, status = {} }: Pick<GoalStateRevision, 'metadata' | 'status'>, word: Word): object {
  const { log = [] } = status
  return {
    metadata: { resourceVersion: metadata.resourceVersion },
    status: { ...effectOf(status, word), log: [...log, word] },
  }
}

function effectOf({ approvals = [], promotions = [] }: Status, { verb, by, at, why, wave = 1, to }: Word): object {
  const said = { by, at, why }
  const onWave = (before: { wave: number }[]) => [...before.filter((each) => each.wave !== wave), { ...said, wave }]
  switch (verb) {
    case 'Hold':
      return { hold: { ...said, to: to ?? null } }
    case 'Release':
      return { hold: null }
    case 'Pause':
      return { pause: said }
    case 'Resume':
      return { pause: null }
    case 'Approve':
      return { approvals: onWave(approvals) }
    case 'Promote':
      return { promotions: onWave(promotions) }
  }
}
