// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// refuses runs every command that loads programs, as cmd makes it: each has to say in
// one line why it cannot, and doctor on which line of its own, too.
func refuses(t *testing.T, cmd func(args ...string) *exec.Cmd, why string, line ...string) {
	t.Helper()
	for _, args := range [][]string{
		{"agent", "--web.listen-address=" + freeAddr(t)}, {"list", "--url=none"}, {"trace", "--url=none"}, {"explain", "1", "--url=none"}, {"demo"},
	} {
		stdout, stderr, status := run(t, cmd(args...))
		if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "halfopen: ") || !strings.Contains(stderr, why) {
			t.Errorf("%s: exit status %d, stdout %q, stderr %q; expected one line with %q", args[0], status, stdout, stderr, why)
		}
	}
	stdout, stderr, status := run(t, cmd("doctor"))
	if status != 1 || stderr != "halfopen: the agent cannot run here: mend what the lines with FAIL say\n" {
		t.Errorf("doctor: exit status %d, stderr %q", status, stderr)
	}
	for _, what := range append(line, "programs") {
		if !strings.Contains(stdout, "\nFAIL  "+what+" ") {
			t.Errorf("doctor: no line that fails for %s:\n%s", what, stdout)
		}
	}
	if !strings.Contains(stdout, why) {
		t.Errorf("doctor does not say %q:\n%s", why, stdout)
	}
}

func TestKernelWithoutTypesIsRefused(t *testing.T) {
	t.Parallel()
	refuses(t, func(args ...string) *exec.Cmd {
		c := exec.Command("sh", append([]string{"-c", `mount -t tmpfs none /sys/kernel/btf && exec "$@"`, "sh", binary}, args...)...)
		c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		return c
	}, "this kernel has no BTF (/sys/kernel/btf/vmlinux)", "BTF")
}

// A name that no kernel has, in a copy of the binary: of one of two alternatives, so
// that it could quietly be taken for the one that this kernel does not have.
func TestKernelWithoutAFieldIsRefused(t *testing.T) {
	t.Parallel()
	body, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	const field, broken = "icsk_keepalive_timer", "icsk_keepalive_timex"
	// In the object's string table; the binary's own strings have no such end.
	changed := bytes.ReplaceAll(body, []byte("\x00"+field+"\x00"), []byte("\x00"+broken+"\x00"))
	if bytes.Equal(changed, body) {
		t.Fatal("the binary does not have it")
	}
	path := filepath.Join(t.TempDir(), "halfopen")
	if err := os.WriteFile(path, changed, 0o755); err != nil {
		t.Fatal(err)
	}
	refuses(t, func(args ...string) *exec.Cmd { return exec.Command(path, args...) }, " lacks inet_connection_sock."+broken)
}

// lockedDown returns whether this kernel lets no program read its memory: then no test can
// see anything, and only TestLockdown has something to show.
func lockedDown() bool {
	text, err := os.ReadFile("/sys/kernel/security/lockdown")
	return err == nil && strings.Contains(string(text), "[confidentiality]")
}

// Whether or not this kernel is locked down.
func TestLockdown(t *testing.T) {
	t.Parallel()
	if lockedDown() {
		refuses(t, func(args ...string) *exec.Cmd { return exec.Command(binary, args...) },
			"this kernel is locked down", "lockdown")
		return
	}
	if stdout, stderr, status := run(t, exec.Command(binary, "doctor")); status != 0 || strings.Contains(stdout, "FAIL") {
		t.Errorf("exit status %d, stderr %q\n%s", status, stderr, stdout)
	}
}
