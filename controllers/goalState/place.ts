import type { GoalState, MachineSelector } from '../../api/goalState.ts'

const placeOf = ({ metadata, spec }: GoalState) => spec.place ?? `${metadata.namespace}/${metadata.name}`

/** Why this goal may not have its place: another one that could select the same machines was there before. */
export function conflictOf(goal: GoalState, others: GoalState[]): string | undefined {
  const earlier = others.find(
    (other) =>
      other.metadata.uid !== goal.metadata.uid &&
      placeOf(other) === placeOf(goal) &&
      overlap(other.spec.machineSelector, goal.spec.machineSelector) &&
      isBefore(other, goal),
  )
  return earlier && `place ${placeOf(goal)} is held by ${earlier.metadata.namespace}/${earlier.metadata.name}`
}

/** Two selectors can both match a machine unless they want different values of the same label. */
const overlap = (a: MachineSelector, b: MachineSelector) =>
  Object.entries(a.matchLabels).every(([key, value]) => (b.matchLabels[key] ?? value) === value)

function isBefore({ metadata: a }: GoalState, { metadata: b }: GoalState): boolean {
  const order = Date.parse(a.creationTimestamp ?? '') - Date.parse(b.creationTimestamp ?? '')
  return order !== 0 ? order < 0 : (a.uid ?? '') < (b.uid ?? '')
}
