import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'

export type { Counter, Gauge, Histogram }

/** The metrics of one role: base units, prefix `shoal_`, no unbounded labels. */
export class Metrics {
  readonly registry = new Registry()

  constructor() {
    collectDefaultMetrics({ register: this.registry })
  }

  counter<Label extends string = never>(name: string, help: string, labelNames: Label[] = []): Counter<Label> {
    return (
      this.#known<Counter<Label>>(name) ??
      new Counter({ name: `shoal_${name}`, help, labelNames, registers: [this.registry] })
    )
  }

  gauge<Label extends string = never>(name: string, help: string, labelNames: Label[] = []): Gauge<Label> {
    return (
      this.#known<Gauge<Label>>(name) ??
      new Gauge({ name: `shoal_${name}`, help, labelNames, registers: [this.registry] })
    )
  }

  histogram<Label extends string = never>(name: string, help: string, labelNames: Label[] = []): Histogram<Label> {
    const buckets = [0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300, 1800]
    return (
      this.#known<Histogram<Label>>(name) ??
      new Histogram({ name: `shoal_${name}`, help, labelNames, buckets, registers: [this.registry] })
    )
  }

  #known<M>(name: string): M | undefined {
    return this.registry.getSingleMetric(`shoal_${name}`) as M | undefined
  }
}
