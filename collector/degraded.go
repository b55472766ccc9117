// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
)

// Reason is why the agent does not see everything that happens on its node.
type Reason uint8

// The reasons, in the order in which they are shown.
const (
	ReasonNamespacesRefused Reason = iota
	ReasonNamespacesHidden
	ReasonProcessesHidden
	ReasonDescriptorsRefused
	ReasonCgroupsRefused
	ReasonCookiesMissing
	ReasonPassHangs
	ReasonPassFails
	ReasonTablesLate

	// Reasons is how many there are.
	Reasons = iota
)

// reasons is the one table of reasons: the doctor, the log, the metric and the
// documents follow it. To add a reason, add a constant above and an entry here.
var reasons = [Reasons]struct {
	code string // the value of the label; never changed
	lost string // what is not seen
	mend string // what to do about it
	// holds returns how the facts show the reason, "" if they do not, and whether
	// most of the node is not seen for it. It is pure.
	holds func(*facts) (detail string, most bool)
}{
	ReasonNamespacesRefused: {
		code: "namespaces_refused",
		lost: "connections of other network namespaces that are older than the agent and that no process holds (before Linux 5.12, whoever holds them) are counted, but not listed or followed",
		mend: "give the agent CAP_SYS_ADMIN and CAP_SYS_PTRACE, and an AppArmor profile that allows ptrace (Unconfined); and CAP_NET_ADMIN where only a socket leads to one",
		holds: func(f *facts) (string, bool) {
			if f.refused == 0 {
				return "", false
			}
			return detailOf(fmt.Sprintf("%d of %d network namespaces cannot be entered", f.refused, f.namespaces), f.refusal), f.mostNamespaces()
		},
	},
	ReasonNamespacesHidden: {
		code: "namespaces_hidden",
		lost: "connections that are older than the agent and that no process in sight holds are counted, but not listed or followed, in network namespaces that no process, mount or descriptor in sight leads to",
		mend: "run the agent in the host's pid namespace (hostPID: true); what only a mount elsewhere or a closed connection keeps shows nowhere, and ends by itself",
		holds: func(f *facts) (string, bool) {
			if f.hidden == 0 {
				return "", false
			}
			return fmt.Sprintf("no way leads into %d of %d network namespaces", f.hidden, f.namespaces), f.mostNamespaces()
		},
	},
	ReasonProcessesHidden: {
		code: "processes_hidden",
		lost: "connections of processes outside of the agent's pid namespace have no process, and their network namespaces may not be found",
		mend: "run the agent in the host's pid namespace (hostPID: true, docker run --pid=host)",
		holds: func(f *facts) (string, bool) {
			if !f.privatePIDs {
				return "", false
			}
			return fmt.Sprintf("the agent is in a pid namespace of its own, with %d of the machine's %d threads", f.threads, f.allThreads),
				2*f.threads < f.allThreads
		},
	},
	ReasonDescriptorsRefused: {
		code: "descriptors_refused",
		lost: "network namespaces that only a descriptor of a process leads to cannot be entered",
		mend: "give the agent CAP_SYS_PTRACE, an AppArmor profile that allows ptrace (Unconfined), a seccomp profile that allows pidfd_getfd, and a kernel.yama.ptrace_scope below 3",
		holds: func(f *facts) (string, bool) {
			if f.descriptorsErr == nil {
				return "", false
			}
			return detailOf("the kernel does not let the agent have another process's descriptors", f.descriptorsErr), false
		},
	},
	ReasonCgroupsRefused: {
		code: "cgroups_refused",
		lost: "the unit, container and pod of a connection are those of the process that holds it, not of the one that made it, and unknown once the process has ended",
		mend: "give the agent CAP_DAC_READ_SEARCH, and a seccomp profile that allows open_by_handle_at",
		holds: func(f *facts) (string, bool) {
			if f.cgroupsErr == nil {
				return "", false
			}
			return detailOf("the kernel does not let the agent open a control group by its id", f.cgroupsErr), false
		},
	},
	ReasonCookiesMissing: {
		code: "cookies_missing",
		lost: "new connections are not known until a census, nor what they ask of their peers before",
		mend: "before Linux 5.12, give the agent CAP_SYS_ADMIN and the host's cgroup namespace (docker run --cgroupns=host)",
		holds: func(f *facts) (string, bool) {
			if f.cookiesErr == nil {
				return "", false
			}
			return detailOf("new connections get no cookie", f.cookiesErr), false
		},
	},
	ReasonPassHangs: {
		code: "pass_hangs",
		lost: "what a pass over the sockets tells is as old as the last one that ended: connections, verdicts or owners",
		mend: "see whether a file system does not answer (a file there may lead to a network namespace), whether the agent gets its share of CPU, then restart the agent",
		holds: func(f *facts) (string, bool) {
			for i := range f.passes {
				if p := &f.passes[i]; !p.began.IsZero() && f.now.Sub(p.began) > max(hangsAfter, hangsTimes*p.took) {
					return fmt.Sprintf("%s has not ended for %s", passNames[i], f.now.Sub(p.began).Round(time.Second)), true
				}
			}
			if !f.searchHangs.IsZero() { // which costs less, and anybody may be the cause of
				return fmt.Sprintf("the search for sockets without a cookie has not ended since %s", f.searchHangs.UTC().Format(time.RFC3339)), false
			}
			return "", false
		},
	},
	ReasonPassFails: {
		code: "pass_fails",
		lost: "what a pass over the sockets tells is as old as the last one that worked: connections, verdicts or owners",
		mend: "mend what the error says: the agent may be short of descriptors (LimitNOFILE) or memory",
		holds: func(f *facts) (string, bool) {
			for i := range f.passes {
				if p := &f.passes[i]; p.failed > 0 {
					return fmt.Sprintf("%s failed: %v", passNames[i], p.err), p.failed > 1
				}
			}
			if f.censusErr != nil {
				return detailOf("the census was incomplete", f.censusErr), false
			}
			return "", false
		},
	},
	ReasonTablesLate: {
		code: "tables_late",
		lost: "connections of network namespaces that have large hash tables of their own (net.ipv4.tcp_child_ehash_entries) are counted as they were minutes ago",
		mend: "find out who makes such namespaces (halfopen doctor names them), or give censuses more of a core (--census-cpu)",
		holds: func(f *facts) (string, bool) {
			if f.late == 0 && f.unlisted > 0 && f.now.Sub(f.unlistedAt) < unlistedFor {
				return fmt.Sprintf("%d hash tables of single network namespaces take too long to be listed", f.unlisted), false
			}
			if f.late == 0 {
				return "", false
			}
			return fmt.Sprintf("%d of %d hash tables of single network namespaces take too long to walk%s", f.late, f.tables, f.lateOnes), false
		},
	},
}

// detailOf adds an error to what is said, if there is one.
func detailOf(what string, err error) string {
	if err == nil {
		return what
	}
	return fmt.Sprintf("%s: %v", what, err)
}

// String returns the code of the reason, which is the value of its label.
func (r Reason) String() string { return reasons[r].code }

// Lost returns what is not seen while the reason holds, one sentence without a full
// stop.
func (r Reason) Lost() string { return reasons[r].lost }

// Mend returns what to do about the reason, one sentence without a full stop.
func (r Reason) Mend() string { return reasons[r].mend }

// Finding is a reason that holds.
type Finding struct {
	Reason Reason
	Detail string // how it shows, on one line
	Most   bool   // most of the node is not seen for it
}

// pass is a kind of pass over the kernel's sockets or processes, as Run takes them.
type pass uint8

const (
	passCensus pass = iota
	passWatch
	passOwners

	passes = iota
)

var passNames = [passes]string{passCensus: "the census", passWatch: "the watch pass", passOwners: "the search for owners"}

// A pass hangs that has taken hangsAfter, and hangsTimes longer than the last that
// ended.
const (
	hangsAfter = 30 * time.Second
	hangsTimes = 10
)

type passState struct {
	began  time.Time     // of the pass under way; zero: there is none
	took   time.Duration // the last that ended without an error
	failed int           // how many failed in a row
	err    error         // of the last that failed
}

// facts are what the reasons are derived from. They know nothing of clocks, files or
// the kernel.
type facts struct {
	now    time.Time
	passes [passes]passState

	// Of the last census: how many namespaces there are, and in how many it lists not
	// all connections since it was refused them or has no way into them. hiddenNow is
	// of the last alone: a namespace that is about to go looks hidden, in one census.
	namespaces, refused, hidden, hiddenNow int
	refusal                                error // of one of those refused
	tables, late                           int   // hash tables of namespaces' own; those not walked whole in time
	lateOnes                               string
	// Of the last look that somebody waited for: the trackers that it did not get through.
	unlisted   int
	unlistedAt time.Time
	censusErr  error // another reason why sockets may be missing

	environment
}

// mostNamespaces reports whether more than half of the namespaces are not seen.
func (f *facts) mostNamespaces() bool { return 2*(f.refused+f.hidden) > f.namespaces }

// census takes in the result of a census.
func (f *facts) census(res *bpf.CensusResult) {
	f.namespaces, f.refused = res.Namespaces, res.Refused
	f.hidden, f.hiddenNow = min(f.hiddenNow, res.Hidden), res.Hidden
	f.refusal, f.censusErr = nil, nil
	if refused(res.Err) {
		f.refusal = res.Err
	} else {
		f.censusErr = res.Err
	}
	f.tables, f.late, f.lateOnes = len(res.OwnTables), res.Late, ""
}

// refused reports whether a privilege was missing, and not the thing itself.
func refused(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) }

// findings returns the reasons that hold, in their order.
func (f *facts) findings() []Finding {
	var found []Finding
	for r := range Reason(Reasons) {
		if detail, most := reasons[r].holds(f); detail != "" {
			found = append(found, Finding{r, detail, most})
		}
	}
	return found
}

// Assess returns what keeps programs from seeing everything, as the results of one
// census after the other show it, and what the process may do.
func Assess(k Kernel, results ...*bpf.CensusResult) []Finding {
	f := facts{environment: readEnvironment(k, newCgroups())}
	for _, res := range results {
		f.census(res)
		// It is the first, and so has walked none of them before.
		if f.late = len(res.Unwalked); f.late > 0 {
			f.lateOnes = fmt.Sprintf(", such as that of %d", res.Unwalked[0])
		}
	}
	return f.findings()
}

// unlistedFor is for how long it is said that a look left something out.
const unlistedFor = time.Minute

// calm is for how long a reason must not have held to be over: some come and go with
// every pass.
const calm = 10 * time.Second

// assessInterval is how often Run looks whether a pass hangs.
const assessInterval = time.Second

// degradation follows which reasons hold, and logs when one begins or ends. Safe for
// concurrent use.
type degradation struct {
	log *slog.Logger

	mu    sync.Mutex
	facts facts
	held  [Reasons]struct {
		Finding
		since, last time.Time // since when, and when it was last seen; zero: it does not hold
	}
}

// begin notes that a pass begins.
func (d *degradation) begin(p pass, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.facts.passes[p].began = now
}

// end notes that the pass has ended, and with which error.
func (d *degradation) end(p pass, err error, now time.Time) {
	d.change(now, func(f *facts) {
		s := &f.passes[p]
		if err != nil {
			s.failed++
			s.err = err
		} else {
			s.failed, s.err = 0, nil
			s.took = now.Sub(s.began)
		}
		s.began = time.Time{}
	})
}

// change changes the facts, and finds out what follows from them.
func (d *degradation) change(now time.Time, f func(*facts)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(&d.facts)
	d.facts.now = now
	for _, found := range d.facts.findings() {
		h := &d.held[found.Reason]
		if h.since.IsZero() {
			h.since = now
			d.log.Warn("Not everything is seen", "reason", found.Reason.String(), "lost", found.Reason.Lost(),
				"why", found.Detail, "do", found.Reason.Mend())
		}
		h.Finding, h.last = found, now
	}
	for r := range d.held {
		if h := &d.held[r]; !h.since.IsZero() && now.Sub(h.last) >= calm {
			d.log.Info("What was not seen is seen again", "reason", Reason(r).String(), "after", now.Sub(h.since).Round(time.Second))
			h.since = time.Time{}
		}
	}
}

// findings returns the reasons that hold.
func (d *degradation) findings() []Finding {
	d.mu.Lock()
	defer d.mu.Unlock()
	var found []Finding
	for r := range d.held {
		if h := &d.held[r]; !h.since.IsZero() {
			found = append(found, h.Finding)
		}
	}
	return found
}

// watch looks whether a pass hangs, and whether a reason is over, until the context
// ends.
func (d *degradation) watch(ctx context.Context) error {
	ticker := time.NewTicker(assessInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-ticker.C:
			d.change(now, func(*facts) {})
		}
	}
}

// Degraded returns why the agent does not see everything now; nothing if it does.
func (c *Collector) Degraded() []Finding { return c.degraded.findings() }

// attempt takes a pass. That it hangs or fails is a reason; the next one repairs what
// it can. A pass that fails because the context has ended is not a failure.
func (c *Collector) attempt(ctx context.Context, p pass, take func() error) {
	c.degraded.begin(p, time.Now())
	err := take()
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		c.failed.Add(1)
	}
	c.degraded.end(p, err, time.Now())
}
