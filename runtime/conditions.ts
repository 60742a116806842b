import type { Condition } from '../api/meta.ts'

/** Where an object stands, in one word and a message; kstatus' three conditions follow from it. */
export type Standing =
  | { is: 'Ready'; reason: string; message: string }
  /** On its way; will go on by itself. */
  | { is: 'Reconciling'; reason: string; message: string }
  /** Will not go on without a person. */
  | { is: 'Stalled'; reason: string; message: string }

/** The list with this condition set; lastTransitionTime moves only when the status does. */
export function setCondition(
  list: Condition[],
  next: Omit<Condition, 'lastTransitionTime'>,
  nowMs: number,
): Condition[] {
  const old = list.find(({ type }) => type === next.type)
  const lastTransitionTime = old?.status === next.status ? old.lastTransitionTime : new Date(nowMs).toISOString()
  const others = list.filter(({ type }) => type !== next.type)
  return [...others, { ...next, lastTransitionTime }].sort((a, b) => (a.type < b.type ? -1 : 1))
}

/** Ready, Reconciling and Stalled as kstatus reads them: the latter two are there only when they are True. */
export function standingConditions(
  list: Condition[],
  standing: Standing,
  observedGeneration: number | undefined,
  nowMs: number,
): Condition[] {
  const { is, reason, message } = standing
  const generation = observedGeneration === undefined ? {} : { observedGeneration }
  const rest = list.filter(({ type }) => (type !== 'Reconciling' && type !== 'Stalled') || type === is)
  const ready = setCondition(
    rest,
    { type: 'Ready', status: is === 'Ready' ? 'True' : 'False', reason, message, ...generation },
    nowMs,
  )
  return is === 'Ready'
    ? ready
    : setCondition(ready, { type: is, status: 'True', reason, message, ...generation }, nowMs)
}
