// SPDX-License-Identifier: Apache-2.0

// Who owns a connection. Rows of the stream have the fields pid, comm, group and held;
// objects of the API are translated to these. Needs no DOM.

import { printable } from '/web/format.js';

// The values of held, for a socket that no process can hold.
const heldTexts = { orphaned: 'closed by its application', unaccepted: 'not yet accepted' };

// ownership returns the fields of a row for a connection or death of the API.
export function ownership(o) {
  const held = o.accepted === false ? 'unaccepted' : o.uid === null ? 'orphaned' : '';
  return { pid: o.process?.pid, comm: o.process?.comm, group: groupName(o), held };
}

// groupName returns the best name of the group that a process runs in: its pod, else its
// container, else its unit; '' if it has none. The agent sends the same name in a row.
function groupName(o) {
  if (o.pod_uid) return `pod ${o.pod_uid}`;
  if (o.container_id) return `container ${o.container_id.slice(0, 12)}`;
  return o.unit ?? '';
}

// ownerParts returns two texts: the process, and the group that it runs in; '' for what
// is not known.
export function ownerParts({ pid, comm, group, held }) {
  if (held) return [heldTexts[held] ?? held, ''];
  return [pid ? `${printable(comm)}[${pid}]` : '', printable(group)];
}

// ownerText returns both parts as one text.
export const ownerText = (row) => ownerParts(row).filter(Boolean).join(' ');
