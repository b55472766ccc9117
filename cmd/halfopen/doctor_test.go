// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/collector"
)

func TestEffectiveCapabilities(t *testing.T) {
	const status = "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t000001ffffffffff\nCapEff:\t000000c000200000\nCapBnd:\t0\n"
	caps, err := effectiveCaps(status)
	if want := uint64(1)<<unix.CAP_BPF | 1<<unix.CAP_PERFMON | 1<<unix.CAP_SYS_ADMIN; err != nil || caps != want {
		t.Errorf("%x, error %v, want %x", caps, err, want)
	}
	if _, err := effectiveCaps("Name:\tx\n"); err == nil {
		t.Error("capabilities where there are none")
	}
}

func TestCapabilities(t *testing.T) {
	all := uint64(0)
	for _, c := range bpf.Capabilities {
		all |= 1 << c.Bit
	}
	for _, tt := range []struct {
		name    string
		missing []int
		line    string // of the first that is missing
		failed  bool
	}{
		{"all", nil, "", false},
		{"without CAP_BPF", []int{unix.CAP_BPF}, "ok    CAP_BPF                            to load programs; CAP_SYS_ADMIN includes it\n", false},
		{"without CAP_BPF and CAP_SYS_ADMIN", []int{unix.CAP_BPF, unix.CAP_SYS_ADMIN}, "FAIL  CAP_BPF                            missing, but needed to load programs: run as root\n", true},
		{"without CAP_SYS_ADMIN", []int{unix.CAP_SYS_ADMIN}, "--    CAP_SYS_ADMIN                      missing: no other network namespace can be entered: ", false},
		{"without CAP_SYS_PTRACE", []int{unix.CAP_SYS_PTRACE}, "--    CAP_SYS_PTRACE                     missing: no network namespace of another process can be entered: ", false},
		{"without CAP_DAC_READ_SEARCH", []int{unix.CAP_DAC_READ_SEARCH}, "--    CAP_DAC_READ_SEARCH                missing: the unit, container and pod of a connection are ", false},
		{"without CAP_SYS_RESOURCE", []int{unix.CAP_SYS_RESOURCE}, "  CAP_SYS_RESOURCE                   missing, ", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			effective := all
			for _, bit := range tt.missing {
				effective &^= 1 << bit
			}
			var b bytes.Buffer
			r := &report{w: &b}
			r.capabilities(effective)
			if r.failed != tt.failed || !strings.Contains(b.String(), tt.line) || strings.Count(b.String(), "\n") != len(bpf.Capabilities) {
				t.Errorf("failed %v\n%swant a line %q", r.failed, b.String(), tt.line)
			}
		})
	}
}

func TestDoctorSaysWhatIsNotSeen(t *testing.T) {
	refused := collector.Finding{Reason: collector.ReasonCgroupsRefused, Detail: "operation not permitted"}
	most := collector.Finding{Reason: collector.ReasonProcessesHidden, Detail: "7 of 834 threads", Most: true}
	for _, tt := range []struct {
		findings []collector.Finding
		line     string
		verdict  string
	}{
		{nil, "ok    what is seen                       all of this node\n", "The agent can run here: sudo halfopen agent"},
		{
			[]collector.Finding{refused},
			"--    cgroups_refused                    operation not permitted. Lost: " + refused.Reason.Lost() + ". To do: " + refused.Reason.Mend() + "\n",
			"The agent can run here, but would not see everything: cgroups_refused",
		},
		{
			[]collector.Finding{most, refused}, "--    processes_hidden                   7 of 834 threads. Lost: ",
			"The agent can run here, but would not see most of this node, and not be ready: processes_hidden, cgroups_refused",
		},
	} {
		var b bytes.Buffer
		r := &report{w: &b}
		r.seen(tt.findings)
		if !strings.HasPrefix(b.String(), tt.line) || r.verdict() != tt.verdict || r.failed {
			t.Errorf("failed %v, %q\n%swant %q\n%s", r.failed, r.verdict(), b.String(), tt.verdict, tt.line)
		}
	}
}

func TestLockdown(t *testing.T) {
	missing := &fs.PathError{Op: "open", Path: securityfs + "/lockdown", Err: syscall.ENOENT}
	forbidden := &fs.PathError{Op: "open", Path: securityfs + "/lockdown", Err: syscall.EACCES}
	for _, tt := range []struct {
		name, text string
		err        error
		mounted    bool
		want       string
	}{
		{"none", "[none] integrity confidentiality\n", nil, true, "ok    lockdown                           none\n"},
		{"integrity allows BPF", "none [integrity] confidentiality\n", nil, true, "ok    lockdown                           integrity\n"},
		{"confidentiality forbids it", "none integrity [confidentiality]\n", nil, true, "FAIL  lockdown                           confidentiality, which forbids to read the kernel's memory: boot with lockdown=integrity\n"},
		{"something new is not guessed at", "x\n", nil, true, "--    lockdown                           not known, since its file says \"x\"\n"},
		{"a kernel without it", "", missing, true, "ok    lockdown                           none: this kernel cannot be locked down\n"},
		{"securityfs is not there to tell", "", missing, false, "--    lockdown                           not known, since securityfs is not mounted on /sys/kernel/security\n"},
		{"not for us to read", "", forbidden, true, "--    lockdown                           not known, since it cannot be read: permission denied\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			r := &report{w: &b}
			r.lockdown([]byte(tt.text), tt.err, tt.mounted)
			if b.String() != tt.want || r.failed != strings.HasPrefix(tt.want, "FAIL") {
				t.Errorf("failed %v\n%swant\n%s", r.failed, b.String(), tt.want)
			}
		})
	}
}

func TestDifferences(t *testing.T) {
	var b bytes.Buffer
	r := &report{w: &b}
	r.differences([]bpf.Difference{
		{Name: "keepalive timer", Here: "sock.sk_timer (before 7.0)"},
		{Name: "control groups of sockets", Lost: "no unit is known of some"},
	})
	const want = "ok    keepalive timer                    sock.sk_timer (before 7.0)\n" +
		"--    control groups of sockets          no unit is known of some\n"
	if b.String() != want || r.failed {
		t.Errorf("failed %v\n%swant\n%s", r.failed, b.String(), want)
	}
}

func TestDoctorSaysWhatIsSoWhateverThePrivileges(t *testing.T) {
	status, stdout, stderr := halfopen(t, "doctor")
	for line := range strings.Lines(stdout) {
		switch mark := strings.Fields(line)[0]; mark {
		case "ok", "--", "FAIL", "The":
		default:
			t.Errorf("a line begins with %q", mark)
		}
	}
	for _, what := range []string{"kernel", "user", "CAP_BPF", "CAP_SYS_PTRACE", "lockdown", "BTF", "programs", "timers", "census", "owners"} {
		if !strings.Contains(stdout, "  "+what+" ") {
			t.Errorf("nothing is said of %s", what)
		}
	}
	differences, err := bpf.Differences()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range differences {
		if strings.Count(stdout, "  "+d.Name+" ") != 1 {
			t.Errorf("there is not one line of %s:\n%s", d.Name, stdout)
		}
	}
	failed := strings.Contains(stdout, "FAIL")
	if failed != (status == exitFailed) || failed != (stderr != "") || strings.Count(stderr, "\n") > 1 {
		t.Errorf("status %d, stderr %q, stdout\n%s", status, stderr, stdout)
	}
}
