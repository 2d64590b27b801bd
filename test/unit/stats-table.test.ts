import assert from 'node:assert/strict';
import { test } from 'node:test';
import { statsTable } from '../../src/cli/stats-table.ts';
import { counterBlock, PORT_SLOTS, readCounters } from '../../src/stats/counters.ts';

test('statistics: an uplink is shown behind the devices, with what has come in and gone out, and why some was lost', () => {
  const block = new Float64Array(counterBlock(PORT_SLOTS));
  Object.entries({ tx_packets: 10, tx_forwarded: 7, tx_drop_vlan: 2, tx_drop_unknown: 1 }).forEach(([name, n]) => {
    block[PORT_SLOTS[name as 'tx_packets']] = n;
  });
  block[PORT_SLOTS.rx_packets] = 5;
  block[PORT_SLOTS.rx_drop_mtu] = 4;
  const text = statsTable([], false, [{ name: 'net_af_packet0', counters: readCounters(PORT_SLOTS, block) }]);
  assert.deepEqual(text.split('\n').slice(1), [
    'Statistics for uplink net_af_packet0 -----------------',
    'RX total:               10',
    'RX dropped:             3',
    'RX successful:          7',
    'TX total:               9',
    'TX dropped:             4',
    'TX successful:          5',
    '  tx_drop_vlan:         2',
    '  tx_drop_unknown:      1',
    '  rx_drop_mtu:          4',
    '======================================================',
    '',
  ]);
});

test('statistics: an lcore is shown with what it did with its time', () => {
  const counters = { rounds: 9, bursts: 8, sleeps: 7, commands: 6, busy_us: 1499, idle_us: 2_000_500, sleep_us: 12e6 };
  assert.deepEqual(
    statsTable([], false, [], [{ lcore: 3, counters }])
      .split('\n')
      .slice(1, 6),
    [
      'Statistics for lcore 3 -------------------------------',
      'Busy ms:                1',
      'Idle ms:                2001',
      'Asleep ms:              12000',
      'Sleeps:                 7',
    ],
  );
});
