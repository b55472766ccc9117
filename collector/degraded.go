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

// Reason is a reason why the agent does not see everything that happens on its node.
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
	ReasonDropsUnwatched

	// Reasons is the number of reasons.
	Reasons = iota
)

// reasons is the one table of reasons. The doctor, the log, the metric and the documents
// follow it. To add a reason, add a constant above and an entry here.
var reasons = [Reasons]struct {
	code string // the value of the metric's label, which never changes
	lost string // what is not seen
	mend string // what to do about it
	// holds returns how the reason shows in the situation, "" if it does not hold, and
	// whether most of the node is not seen because of it. It is pure.
	holds func(*situation) (detail string, most bool)
}{
	ReasonNamespacesRefused: {
		code: "namespaces_refused",
		lost: "connections of other network namespaces that are older than the agent and that no process holds (before Linux 5.12, also those that a process holds) are counted, but not listed or followed",
		mend: "give the agent CAP_SYS_ADMIN and CAP_SYS_PTRACE, and an AppArmor profile that allows ptrace (Unconfined); and CAP_NET_ADMIN if only a socket leads to a namespace",
		holds: func(s *situation) (string, bool) {
			if s.refused == 0 {
				return "", false
			}
			return detailOf(fmt.Sprintf("%d of %d network namespaces cannot be entered", s.refused, s.namespaces), s.refusal), s.mostNamespaces()
		},
	},
	ReasonNamespacesHidden: {
		code: "namespaces_hidden",
		lost: "in network namespaces that no visible process, mount or descriptor leads to, connections that are older than the agent and that no visible process holds are counted, but not listed or followed",
		mend: "run the agent in the host's pid namespace (hostPID: true); a namespace that only a mount elsewhere or a closed connection keeps alive cannot be found, and ends by itself",
		holds: func(s *situation) (string, bool) {
			if s.hidden == 0 {
				return "", false
			}
			return fmt.Sprintf("nothing visible leads into %d of %d network namespaces", s.hidden, s.namespaces), s.mostNamespaces()
		},
	},
	ReasonProcessesHidden: {
		code: "processes_hidden",
		lost: "connections of processes outside of the agent's pid namespace have no process, and their network namespaces may not be found",
		mend: "run the agent in the host's pid namespace (hostPID: true, docker run --pid=host)",
		holds: func(s *situation) (string, bool) {
			if !s.privatePIDs {
				return "", false
			}
			return fmt.Sprintf("the agent is in a pid namespace of its own, with %d of the machine's %d threads", s.threads, s.allThreads),
				2*s.threads < s.allThreads
		},
	},
	ReasonDescriptorsRefused: {
		code: "descriptors_refused",
		lost: "network namespaces that only a descriptor of a process leads to cannot be entered",
		mend: "give the agent CAP_SYS_PTRACE, an AppArmor profile that allows ptrace (Unconfined), a seccomp profile that allows pidfd_getfd, and a kernel.yama.ptrace_scope below 3",
		holds: func(s *situation) (string, bool) {
			if s.descriptorsErr == nil {
				return "", false
			}
			return detailOf("the kernel does not let the agent have another process's descriptors", s.descriptorsErr), false
		},
	},
	ReasonCgroupsRefused: {
		code: "cgroups_refused",
		lost: "the unit, container and pod of a connection are those of the process that holds it, not of the process that made it; they are unknown after the process has ended",
		mend: "give the agent CAP_DAC_READ_SEARCH, and a seccomp profile that allows open_by_handle_at",
		holds: func(s *situation) (string, bool) {
			if s.cgroupsErr == nil {
				return "", false
			}
			return detailOf("the kernel does not let the agent open a control group by its id", s.cgroupsErr), false
		},
	},
	ReasonCookiesMissing: {
		code: "cookies_missing",
		lost: "new connections are unknown until the next census, and so are the solicitations that they send before it",
		mend: "before Linux 5.12, give the agent CAP_SYS_ADMIN and the host's cgroup namespace (docker run --cgroupns=host)",
		holds: func(s *situation) (string, bool) {
			if s.cookiesErr == nil {
				return "", false
			}
			return detailOf("new connections get no cookie", s.cookiesErr), false
		},
	},
	ReasonPassHangs: {
		code: "pass_hangs",
		lost: "connections, verdicts or owners are as old as the last pass over the sockets that ended",
		mend: "check that all file systems answer (a file there may lead to a network namespace) and that the agent gets its share of CPU, then restart the agent",
		holds: func(s *situation) (string, bool) {
			for i := range s.passes {
				if p := &s.passes[i]; !p.began.IsZero() && s.now.Sub(p.began) > max(hangsAfter, hangsTimes*p.took) {
					return fmt.Sprintf("%s has not ended for %s", passNames[i], s.now.Sub(p.began).Round(time.Second)), true
				}
			}
			if !s.searchHangs.IsZero() { // any user can cause it, so it comes after the passes
				return fmt.Sprintf("the search for sockets without a cookie has not ended since %s", s.searchHangs.UTC().Format(time.RFC3339)), false
			}
			return "", false
		},
	},
	ReasonPassFails: {
		code: "pass_fails",
		lost: "connections, verdicts or owners are as old as the last pass over the sockets that worked",
		mend: "repair the cause that the error names: the agent may lack descriptors (LimitNOFILE) or memory",
		holds: func(s *situation) (string, bool) {
			for i := range s.passes {
				if p := &s.passes[i]; p.failed > 0 {
					return fmt.Sprintf("%s failed: %v", passNames[i], p.err), p.failed > 1
				}
			}
			if s.censusErr != nil {
				return detailOf("the census was incomplete", s.censusErr), false
			}
			return "", false
		},
	},
	ReasonTablesLate: {
		code: "tables_late",
		lost: "connections of network namespaces that have large hash tables of their own (net.ipv4.tcp_child_ehash_entries) are counted as they were minutes ago",
		mend: "find the program that makes such namespaces (halfopen doctor names some), or give censuses a larger share of a core (--census-cpu)",
		holds: func(s *situation) (string, bool) {
			if s.late == 0 && s.unlisted > 0 && s.now.Sub(s.unlistedAt) < unlistedFor {
				return fmt.Sprintf("%d hash tables of single network namespaces take too long to be listed", s.unlisted), false
			}
			if s.late == 0 {
				return "", false
			}
			return fmt.Sprintf("%d of %d hash tables of single network namespaces take too long to walk%s", s.late, s.tables, s.lateOnes), false
		},
	},
	ReasonDropsUnwatched: {
		code: "drops_unwatched",
		lost: "keepalive probes that this host itself drops count as sent, and it is not known why a connection is blocked",
		mend: "find out which packets the host drops in such numbers (perf trace -e skb:kfree_skb); or, if it is not that, give the agent CAP_BPF and CAP_PERFMON",
		holds: func(s *situation) (string, bool) {
			if s.dropsErr == nil {
				return "", false
			}
			return detailOf("the program that sees drops is not attached", s.dropsErr), false
		},
	},
}

// detailOf appends an error to a text, if there is one.
func detailOf(what string, err error) string {
	if err == nil {
		return what
	}
	return fmt.Sprintf("%s: %v", what, err)
}

// String returns the code of the reason, which is the value of its label.
func (r Reason) String() string { return reasons[r].code }

// Lost returns what the agent does not see while the reason holds: one sentence without a
// full stop.
func (r Reason) Lost() string { return reasons[r].lost }

// Mend returns what to do about the reason: one sentence without a full stop.
func (r Reason) Mend() string { return reasons[r].mend }

// Finding is a reason that holds.
type Finding struct {
	Reason Reason
	Detail string // how the reason shows, on one line
	Most   bool   // most of the node is not seen because of it
}

// pass is a kind of pass over the kernel's sockets or processes that Run takes.
type pass uint8

const (
	passCensus pass = iota
	passWatch
	passOwners

	passes = iota
)

var passNames = [passes]string{passCensus: "the census", passWatch: "the watch pass", passOwners: "the search for owners"}

// A pass hangs if it has taken longer than hangsAfter, and longer than hangsTimes the last
// one that ended.
const (
	hangsAfter = 30 * time.Second
	hangsTimes = 10
)

// passState is the state of one kind of pass.
type passState struct {
	began  time.Time     // the beginning of the pass that is running; zero: none is
	took   time.Duration // duration of the last one that ended without an error
	failed int           // number of failures in a row
	err    error         // of the last failure
}

// situation is what the reasons are derived from. It has values only: no clock, no file and
// no kernel.
type situation struct {
	now    time.Time
	passes [passes]passState

	// Numbers of network namespaces at the last census: all, those that it was not
	// allowed to enter, and those that nothing leads into. hidden is the lower number of
	// the last two censuses and hiddenNow that of the last one: a namespace that is about
	// to end looks hidden in one census.
	namespaces, refused, hidden, hiddenNow int
	refusal                                error     // the error of one of the refused ones
	tables, late                           int       // own hash tables of namespaces: all, and those that were not walked whole in time
	lateOnes                               string    // names one of them, or ""
	unlisted                               int       // own hash tables that the last query did not walk
	unlistedAt                             time.Time // the time of that query
	dropsErr                               error     // why drops are not watched, though they should be
	censusErr                              error     // another error of the last census: sockets may be missing

	environment
}

// mostNamespaces reports whether the census cannot enter more than half of the namespaces.
func (s *situation) mostNamespaces() bool { return 2*(s.refused+s.hidden) > s.namespaces }

// census updates the situation from the result of a census.
func (s *situation) census(res *bpf.CensusResult) {
	s.namespaces, s.refused = res.Namespaces, res.Refused
	s.hidden, s.hiddenNow = min(s.hiddenNow, res.Hidden), res.Hidden
	s.refusal, s.censusErr = nil, nil
	if refused(res.Err) {
		s.refusal = res.Err
	} else {
		s.censusErr = res.Err
	}
	s.tables, s.late, s.lateOnes = len(res.OwnTables), res.Late, ""
}

// refused reports whether err says that this process lacks a privilege.
func refused(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) }

// findings returns the reasons that hold, in the order of the constants.
func (s *situation) findings() []Finding {
	var found []Finding
	for r := range Reason(Reasons) {
		if detail, most := reasons[r].holds(s); detail != "" {
			found = append(found, Finding{r, detail, most})
		}
	}
	return found
}

// Assess returns why the kernel programs do not see everything. It derives that from the
// results of successive censuses and from what this process may do.
func Assess(k Kernel, results ...*bpf.CensusResult) []Finding {
	s := situation{environment: readEnvironment(k, newCgroups(nil))}
	for _, res := range results {
		s.census(res)
		// No earlier census has walked these tables.
		if s.late = len(res.Unwalked); s.late > 0 {
			s.lateOnes = fmt.Sprintf(", such as that of %d", res.Unwalked[0])
		}
	}
	return s.findings()
}

// unlistedFor is how long ReasonTablesLate holds after a query that did not walk a table.
const unlistedFor = time.Minute

// endsAfter is how long a reason must not have held before it counts as ended: some reasons
// come and go with every pass.
const endsAfter = 10 * time.Second

// assessInterval is the time between two checks of whether a pass hangs.
const assessInterval = time.Second

// degradation knows which reasons hold, and logs when one begins or ends. It is safe for
// concurrent use.
type degradation struct {
	log *slog.Logger

	mu        sync.Mutex
	situation situation
	held      [Reasons]struct {
		Finding
		since, last time.Time // when it began and when it last held; since is zero if it does not hold
	}
}

// begin records that a pass begins.
func (d *degradation) begin(p pass, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.situation.passes[p].began = now
}

// end records that a pass has ended, and with which error.
func (d *degradation) end(p pass, err error, now time.Time) {
	d.change(now, func(s *situation) {
		state := &s.passes[p]
		if err != nil {
			state.failed++
			state.err = err
		} else {
			state.failed, state.err = 0, nil
			state.took = now.Sub(state.began)
		}
		state.began = time.Time{}
	})
}

// change updates the situation and finds out which reasons hold now.
func (d *degradation) change(now time.Time, update func(*situation)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	update(&d.situation)
	d.situation.now = now
	for _, found := range d.situation.findings() {
		h := &d.held[found.Reason]
		if h.since.IsZero() {
			h.since = now
			d.log.Warn("Not everything is seen", "reason", found.Reason.String(), "lost", found.Reason.Lost(),
				"why", found.Detail, "do", found.Reason.Mend())
		}
		h.Finding, h.last = found, now
	}
	for r := range d.held {
		if h := &d.held[r]; !h.since.IsZero() && now.Sub(h.last) >= endsAfter {
			d.log.Info("What was not seen is seen again", "reason", Reason(r).String(), "after", now.Sub(h.since).Round(time.Second))
			h.since = time.Time{}
		}
	}
}

// findings returns the reasons that hold, in the order of the constants.
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

// watch checks every assessInterval whether a pass hangs and whether a reason has ended,
// until the context ends.
func (d *degradation) watch(ctx context.Context) error {
	ticker := time.NewTicker(assessInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-ticker.C:
			d.change(now, func(*situation) {})
		}
	}
}

// Degraded returns why the agent does not see everything now; nil if it does.
func (c *Collector) Degraded() []Finding { return c.degraded.findings() }

// runPass runs take, which is one pass. A pass that hangs or fails is a Reason; the next one
// repairs what it can. An error after the context has ended is not a failure.
func (c *Collector) runPass(ctx context.Context, p pass, take func() error) {
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
