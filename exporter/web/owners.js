// SPDX-License-Identifier: Apache-2.0

// The owner of a connection: a process, and the group that the process runs in. Rows of the
// stream have the fields pid, comm, group and held; ownership translates objects of the API
// to these fields. This module needs no DOM.

import { printable } from '/web/format.js';

// The text for each value of the field held, which a row has if no process can hold its socket.
const heldTexts = { orphaned: 'closed by its application', unaccepted: 'not yet accepted' };

// ownership returns the fields above for a connection or a death of the API.
export function ownership(o) {
  const held = o.accepted === false ? 'unaccepted' : o.uid === null ? 'orphaned' : '';
  return { pid: o.process?.pid, comm: o.process?.comm, group: groupName(o), held };
}

// groupName returns the best name of the group that a process runs in: its pod, else its
// container, else its unit; '' if it has none of these. The agent sends the same name in a
// row.
function groupName(o) {
  if (o.pod) return `pod ${o.namespace}/${o.pod}`;
  if (o.pod_uid) return `pod ${o.pod_uid}`;
  if (o.container_id) return `container ${o.container || o.container_id.slice(0, 12)}`;
  return o.unit ?? '';
}

// ownerParts returns two texts: the process, and the group that the process runs in. The
// text of an unknown part is ''.
export function ownerParts({ pid, comm, group, held }) {
  if (held) return [heldTexts[held] ?? held, ''];
  return [pid ? `${printable(comm)}[${pid}]` : '', printable(group)];
}

// ownerText returns both parts as one text.
export const ownerText = (row) => ownerParts(row).filter(Boolean).join(' ');
