// SPDX-License-Identifier: Apache-2.0

// The sentences of the story of a connection. Needs no DOM.

import { age, clock, plural, setting, spaced, wholeAge } from '/web/format.js';
import { evidence as evidenceNames } from '/web/names.js';

// solicitation returns what was sent to the peer: a keepalive probe, for example.
export const solicitation = (evidence) => evidenceNames[evidence] ?? 'solicitation';

// deathText says how a connection ended, of a death as the page keeps it.
export function deathText(d) {
  const during = d.during ? ` during ${spaced(d.during)}` : '', errno = d.errno ? ` (${d.errno})` : '';
  const zombie = d.zombie_seconds ? `, after being a zombie for ${age(d.zombie_seconds)}` : '';
  return `Died at ${clock(d.at)}: ${spaced(d.cause)}${during}${errno}${zombie}.`;
}

// adviceText says what an advice would bring. It has a forecast.
export const adviceText = ({ in_seconds: seconds, by }) => `If you did this now, the kernel would give up in ${age(seconds)} (${spaced(by)}).`;

const units = { seconds: 's', milliseconds: 'ms', probes: '', retransmissions: '' };

// settingValue returns the value of a setting with its unit.
export function settingValue({ unit, value }) {
  if (unit === 'switch') return value ? 'on' : 'off';
  if (unit === 'milliseconds') return value ? setting(value) : 'off';
  if (unit === 'seconds' && value >= 60) return `${value} s (${wholeAge(value)})`;
  return `${value} ${units[unit] ?? unit}`.trim();
}

// settingSource says where the value of a setting comes from.
export function settingSource({ source, sysctl }) {
  switch (source) {
    case 'socket': return 'set on the socket';
    case 'sysctl': return `sysctl ${sysctl}`;
    case 'default': return sysctl ? `default of ${sysctl}` : 'default, not set on the socket';
    default: return source;
  }
}

// eventText says what happened in an event of a connection.
export function eventText(e) {
  switch (e.kind) {
    case 'solicitation': return `${solicitation(e.evidence)} ${e.unanswered} in a row went unanswered`;
    case 'answer': return `the peer was heard${e.took_seconds >= 0 ? `, ${age(e.took_seconds)} after the last probe or retransmission` : ''}`;
    case 'verdict': return `the verdict changed from ${e.from} to ${e.to}`;
    default: return e.kind;
  }
}

// unansweredText says of a connection or row how many solicitations the peer has not
// answered, or not acknowledged: 3 keepalive probes unanswered. '' if there are none.
export function unansweredText({ verdict, evidence, unanswered: n, attempts }) {
  if (attempts && (verdict === 'blocked' || !n)) return `${plural(attempts, solicitation(evidence))} that this host failed to send`;
  return evidence && n ? `${plural(n, solicitation(evidence))} ${verdict === 'stuck' ? 'not acknowledged' : 'unanswered'}` : '';
}

// adviceTitle is the title of the advice for a connection with a verdict.
export const adviceTitle = (verdict) => (['stuck', 'blocked', 'unread'].includes(verdict) ? 'What to do' : 'How to notice a dead peer sooner');
