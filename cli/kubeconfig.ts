import { KubeConfig } from '@kubernetes/client-node'

/** What kubectl would use. */
export function loadKubeConfig(): KubeConfig {
  const config = new KubeConfig()
  config.loadFromDefault()
  return config
}

/** The namespace kubectl would use. */
export const currentNamespace = (config: KubeConfig): string =>
  config.getContextObject(config.getCurrentContext())?.namespace ?? 'default'
