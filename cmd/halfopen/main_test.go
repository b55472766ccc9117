// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
)

// halfopen runs the command line and returns its output.
func halfopen(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	status = run(t.Context(), args, &out, &err)
	return status, out.String(), err.String()
}

func TestWrongUsageIsOneLineAndStatusTwo(t *testing.T) {
	for _, tt := range []struct{ name, args, want string }{
		{"no command", "", "halfopen: no command given, try 'halfopen --help'"},
		{"an unknown command", "nope", `halfopen: unknown command "nope", try 'halfopen --help'`},
		{"a view by other rules than the agent's", "top --url=http://h --zombie-silence=1s", "halfopen: --idle-after, --stalled-after, --unread-after, --zombie-unanswered, --zombie-silence and --middlebox-timeout cannot be combined with --url: the agent has its own, try 'halfopen top --help'"},
		{"help for an unknown command", "help nope", `halfopen: unknown command "nope", try 'halfopen --help'`},
		{"an unknown flag", "--x", "halfopen: unknown flag '--x', try 'halfopen --help'"},
		{"an unknown flag of a command", "list --x", "halfopen: unknown flag '--x', try 'halfopen list --help'"},
		{"an unknown short flag", "list -x", "halfopen: unknown flag '-x', try 'halfopen list --help'"},
		{"a flag of another command", "doctor --idle-after=1s", "halfopen: unknown flag '--idle-after', try 'halfopen doctor --help'"},
		{"an argument too many", "doctor now", "halfopen: unexpected now, try 'halfopen doctor --help'"},
		{"a flag without its value", "agent --idle-after", "halfopen: no value for flag '--idle-after', try 'halfopen agent --help'"},
		{"a flag twice", "list --limit=1 --limit=2", "halfopen: flag 'limit' cannot be repeated, try 'halfopen list --help'"},
		{"no duration", "agent --zombie-silence=10", `halfopen: --zombie-silence: "10" is not a duration such as 10s, 5m or 2h, try 'halfopen agent --help'`},
		{"no time at all", "agent --census-interval=0s", "halfopen: --census-interval: 0s is not positive, try 'halfopen agent --help'"},
		{"no share of a core", "agent --census-cpu=0", `halfopen: --census-cpu: "0" is not a percentage of one core such as 1% or 0.5%, try 'halfopen agent --help'`},
		{"a negative duration", "agent --idle-after=-5m", "halfopen: --idle-after: -5m is not positive, try 'halfopen agent --help'"},
		{"no probe at all", "agent --zombie-unanswered=0", `halfopen: --zombie-unanswered: "0" is not a number of at least 1, try 'halfopen agent --help'`},
		{"an unknown log level", "agent --log.level=x", "halfopen: --log.level: unrecognized log level x, try 'halfopen agent --help'"},
		{"an unknown log format", "agent --log.format=x", "halfopen: --log.format: unrecognized log format x, try 'halfopen agent --help'"},
		{"an address without a port", "agent --web.listen-address=foo", `halfopen: --web.listen-address: "foo" is not an address and a port, such as :9839 or [::1]:9839, try 'halfopen agent --help'`},
		{"a port that no service has", "agent --web.listen-address=:foo", `halfopen: --web.listen-address: ":foo" is not an address and a port, such as :9839 or [::1]:9839, try 'halfopen agent --help'`},
		{"an unknown output", "list -o yaml", `halfopen: --output: "yaml" is none of table, wide, json, try 'halfopen list --help'`},
		{"an unknown verdict", "list --verdict=dead", `halfopen: --verdict: unknown verdict "dead" (there are zombie, stuck, blocked, suspect, stalled, unread, unguarded, idle, active), try 'halfopen list --help'`},
		{"an unknown state", "list --state=open", `halfopen: --state: unknown state "open" (there are established, syn_sent, syn_recv, fin_wait1, fin_wait2, time_wait, close, close_wait, last_ack, listen, closing), try 'halfopen list --help'`},
		{"port 0", "list --port=0", `halfopen: --port: "0" is not a port from 1 to 65535, try 'halfopen list --help'`},
		{"process 0", "list --pid=0", `halfopen: --pid: "0" is not a process id, try 'halfopen list --help'`},
		{"a negative limit", "list --limit=-1", `halfopen: --limit: "-1" is not a number of at least 0, try 'halfopen list --help'`},
		{"a limit beyond all numbers", "list --limit=99999999999999999999", `halfopen: --limit: "99999999999999999999" is too large, try 'halfopen list --help'`},
		{"a limit below all numbers", "list --limit=-99999999999999999999", `halfopen: --limit: "-99999999999999999999" is not a number of at least 0, try 'halfopen list --help'`},
		{"a negative port that looks like a flag", "list --port -1", `halfopen: --port: "-1" is not a port from 1 to 65535, try 'halfopen list --help'`},
		{"a negative limit that looks like a flag", "list --limit -1 --port 1", `halfopen: --limit: "-1" is not a number of at least 0, try 'halfopen list --help'`},
		{"a negative duration that looks like a flag", "trace --idle-after -1s", "halfopen: --idle-after: -1s is not positive, try 'halfopen trace --help'"},
		{"a negative number where there is no flag", "list -1", "halfopen: unknown flag '-1', try 'halfopen list --help'"},
		{"a negative number after a flag that has a value", "list --port=1 -1", "halfopen: unknown flag '-1', try 'halfopen list --help'"},
		{"an address that is no URL", "list --url=localhost:9839", `halfopen: --url: "localhost:9839" is neither none nor a URL such as http://127.0.0.1:9839, try 'halfopen list --help'`},
		{"deaths by port", "list --url=http://h --cause=closed --port=1", "halfopen: --cause cannot be combined with filters of connections, --all or --by, try 'halfopen list --help'"},
		{"deaths in groups", "list --url=http://h --cause=closed --by=owner", "halfopen: --cause cannot be combined with filters of connections, --all or --by, try 'halfopen list --help'"},
		{"groups by what there is none of", "list --by=port", `halfopen: --by: unknown grouping "port" (there are owner, remote, verdict, netns), try 'halfopen list --help'`},
		{"settings of no namespace", "list --settings --by=owner", "halfopen: --settings needs --by netns, try 'halfopen list --help'"},
		{"settings without groups", "list --settings", "halfopen: --settings needs --by netns, try 'halfopen list --help'"},
		{"a middlebox that is none", "agent --middlebox-timeout=elb", `halfopen: --middlebox-timeout: "elb" is neither a time such as 350s, nor a preset (aws-nlb, azure-lb, gcp, ipvs), nor a list such as 10.0.0.0/8=350s,default=azure-lb, try 'halfopen agent --help'`},
		{"a middlebox without a destination", "list --middlebox-timeout=10.0.0.0/8=350s,240s", `halfopen: --middlebox-timeout: "240s" has no destination: write PREFIX=TIMEOUT such as 10.0.0.0/8=350s, or default=TIMEOUT, try 'halfopen list --help'`},
		{"a middlebox before a name", "explain --middlebox-timeout=db.example=350s 1", `halfopen: --middlebox-timeout: "db.example" is neither an address such as 10.0.0.2 nor a prefix such as 10.0.0.0/8, nor default, try 'halfopen explain --help'`},
		{"a risk that is none", "list --risk=rain", `halfopen: --risk: unknown risk "rain" (there are no_keepalive, keepalive_slower_than_middlebox, user_timeout_overrides_keepcnt, keepalive_masked_by_unacked_data, close_wait_leak, half_closed_unguarded, one_probe_ends_it, accept_queue_full, peer_host_silent), try 'halfopen list --help'`},
		{"a remote that is a name", "list --remote=localhost", `halfopen: --remote: "localhost" is neither an address such as 10.0.0.2 nor a prefix such as 10.0.0.0/8, try 'halfopen list --help'`},
		{"a namespace by name", "list --netns=blue", `halfopen: --netns: "blue" is not the inode number of a network namespace such as 4026531840 (see lsns -t net), try 'halfopen list --help'`},
		{"an owner without a name", "list --owner=", "halfopen: --owner: the name is empty; - is for those that have none, try 'halfopen list --help'"},
		{"thresholds for an agent that has its own", "list --url=http://h --idle-after=1s", "halfopen: --idle-after, --stalled-after, --unread-after, --zombie-unanswered, --zombie-silence and --middlebox-timeout cannot be combined with --url: the agent has its own, try 'halfopen list --help'"},
		{"an owner that is no pattern", "agent --alert.exclude-owner=chaos[", `halfopen: --alert.exclude-owner: "chaos[" is not a pattern of names such as chaos-*: write \ before a [ or a \ of the name itself, try 'halfopen agent --help'`},
		{"nothing to explain", "explain", "halfopen: no connection given, try 'halfopen explain --help'"},
		{"two things to explain", "explain 1 2", "halfopen: unexpected 2, try 'halfopen explain --help'"},
		{"an explanation as a table", "explain -o table 1", `halfopen: --output: "table" is none of text, json, try 'halfopen explain --help'`},
		{"an explanation by other rules than the agent's", "explain --url=http://h --idle-after=1s 1", "halfopen: --idle-after, --stalled-after, --unread-after, --zombie-unanswered, --zombie-silence and --middlebox-timeout cannot be combined with --url: the agent has its own, try 'halfopen explain --help'"},
		{"a wide trace", "trace -o wide", `halfopen: --output: "wide" is none of text, json, try 'halfopen trace --help'`},
		{"nothing to replay", "replay", "halfopen: no recording given, try 'halfopen replay --help'"},
		{"a replay as a table", "replay -o table x", `halfopen: --output: "table" is none of text, json, try 'halfopen replay --help'`},
		{"a recording without a name", "agent --debug.record=", "halfopen: --debug.record: the name is empty, try 'halfopen agent --help'"},
		{"an argument that moves the cursor", "list\x00--\x1b[2J\nx", "halfopen: unknown flag '--?[2J; x', try 'halfopen list --help'"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := strings.Fields(tt.args)
			if strings.ContainsRune(tt.args, 0) { // where the blanks are part of it
				args = strings.Split(tt.args, "\x00")
			}
			status, stdout, stderr := halfopen(t, args...)
			if status != exitUsage || stdout != "" || stderr != tt.want+"\n" {
				t.Errorf("status %d, stdout %q, stderr\n%s\nwant status 2 and\n%s", status, stdout, stderr, tt.want)
			}
		})
	}
}

func TestHelpGoesToStdoutAndIsDone(t *testing.T) {
	for _, args := range []string{"--help", "-h", "help"} {
		status, stdout, stderr := halfopen(t, args)
		if status != exitDone || stderr != "" || strings.Count(stdout, "usage: halfopen <command>") != 1 {
			t.Errorf("%s: status %d, stderr %q, stdout\n%s", args, status, stderr, stdout)
		}
		for _, c := range commands {
			if !strings.Contains(stdout, "\n  "+c.name+" ") {
				t.Errorf("%s does not list %s", args, c.name)
			}
		}
	}
	for _, c := range commands {
		for _, args := range [][]string{{c.name, "--help"}, {c.name, "-h"}, {"help", c.name}} {
			status, stdout, stderr := halfopen(t, args...)
			if status != exitDone || stderr != "" || strings.Count(stdout, "usage: halfopen "+c.name) != 1 {
				t.Errorf("%s: status %d, stderr %q, stdout\n%s", args, status, stderr, stdout)
			}
		}
	}
}

func TestFailures(t *testing.T) {
	verifier := &ebpf.VerifierError{Cause: syscall.EACCES, Log: []string{"0: (b7) r0 = 0", "R1 type=inv expected=ctx"}}
	for _, tt := range []struct {
		name   string
		err    error
		status int
		stderr string
	}{
		{"success says nothing", nil, exitDone, ""},
		{"a reader that went away is no failure", fmt.Errorf("write: %w", syscall.EPIPE), exitDone, ""},
		{"a failure is one line", errors.New("listen: in use: choose another"), exitFailed, "halfopen: listen: in use: choose another\n"},
		{"several failures are one line", errors.Join(errors.New("one"), errors.New("two")), exitFailed, "halfopen: one; two\n"},
		{"a failure cannot write to the terminal", errors.New("no \x1b[31m\u202efile"), exitFailed, "halfopen: no ?[31m?file\n"},
		{"an interruption is none of the user's errors", errors.Join(context.Canceled, errors.New("close lab: busy")), exitFailed,
			"halfopen: interrupted before it was done; close lab: busy\n"},
		{"wrong usage can come late", usagef("not so"), exitUsage, "halfopen: not so, try 'halfopen list --help'\n"},
		{"too few files are not the kernel's fault", fmt.Errorf("load: %w", &ebpf.VerifierError{Cause: syscall.EMFILE}), exitFailed,
			"halfopen: too many open files: raise the limit, for example with ulimit -n 1024\n"},
		{"the verifier's refusal is told whole", fmt.Errorf("load BPF programs: %w", verifier), exitFailed,
			"halfopen: load BPF programs: : permission denied: 0: (b7) r0 = 0: R1 type=inv expected=ctx; please report this kernel with what follows\n" +
				": permission denied:\n\t0: (b7) r0 = 0\n\tR1 type=inv expected=ctx\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stderr bytes.Buffer
			if status := exitCode(tt.err, "halfopen list", &stderr); status != tt.status || stderr.String() != tt.stderr {
				t.Errorf("status %d, stderr\n%s\nwant %d\n%s", status, stderr.String(), tt.status, tt.stderr)
			}
		})
	}
}

// full is a disk with no room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestOutputThatIsLostIsAFailure(t *testing.T) {
	var stderr bytes.Buffer
	for _, args := range [][]string{{"version"}, {"--help"}} {
		stderr.Reset()
		if status := run(t.Context(), args, full{}, &stderr); status != exitFailed || !strings.Contains(stderr.String(), "no space left") {
			t.Errorf("%s: status %d, stderr %q", args, status, stderr.String())
		}
	}
}
