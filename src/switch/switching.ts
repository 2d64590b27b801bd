/**
 * What one lcore switches with: resolved from the configuration once, so that nothing is asked per packet that no packet can change.
 */
import type { WindowViews } from '../mem/window.ts';
import type { Port } from '../port/port.ts';
import { Classifier, type Classify } from './classify.ts';
import { TransparentEgress, VlanEgress } from './egress.ts';
import { Forwarder } from './forward.ts';
import type { Learner } from './learner.ts';
import { PortVlans, VlanMarks } from './port-vlans.ts';
import type { SwitchConfig } from './switch-config.ts';
import { VlanClassifier } from './vlan-classify.ts';

/** Stages 2 and 3. */
export interface Switching {
  readonly classifier: Classify;
  readonly forwarder: Forwarder;
}

/**
 * @param ports by number; a port that has gone leaves undefined
 * @param windows this thread's, by id
 * @param memory one of them, of which the switch alone writes to the 1024 bytes at `off`, for fronts of packets
 */
export function makeSwitching(
  config: SwitchConfig,
  learner: Learner,
  ports: readonly (Port | undefined)[],
  windows: readonly WindowViews[],
  memory: WindowViews,
  off: number,
): Switching {
  const { vlan } = config;
  if (vlan === undefined) {
    const classifier = new Classifier(config, learner);
    return { classifier, forwarder: new Forwarder(config, learner, ports, new TransparentEgress(memory, off)) };
  }
  const vlans = new PortVlans(vlan, config);
  const marks = new VlanMarks();
  const egress = new VlanEgress(vlans, marks, vlan.strip, memory, off);
  return {
    classifier: new VlanClassifier(config, vlan, learner, vlans, marks, windows),
    forwarder: new Forwarder(config, learner, ports, egress),
  };
}
