// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestErrPrivilegesNamesTheCapabilities(t *testing.T) {
	const want = "not permitted to load BPF programs: run as root, or with CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH and, before Linux 5.11, CAP_SYS_RESOURCE"
	if got := ErrPrivileges.Error(); got != want {
		t.Errorf("%q\nwant %q", got, want)
	}
}

func TestReadmeHasEveryCapability(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(string(readme)) {
		if strings.HasPrefix(line, "| `CAP_") {
			rows++
		}
	}
	if rows != len(Capabilities) {
		t.Errorf("the README has %d capabilities, expected %d", rows, len(Capabilities))
	}
	for _, c := range Capabilities {
		lost := c.Lost
		switch {
		case lost == "" && c.Included:
			lost = "the agent does not start, unless it has `CAP_SYS_ADMIN`, which includes it"
		case lost == "":
			lost = "the agent does not start there"
		}
		if row := fmt.Sprintf("| `%s` | %s | %s |\n", c.Name, c.For, lost); !strings.Contains(string(readme), row) {
			t.Errorf("the README lacks the line\n%s", row)
		}
	}
}

func TestNewerKernelsNeedFewerCapabilities(t *testing.T) {
	for _, c := range Capabilities {
		original := c
		if c.until = (version{99, 0}); !c.Needed() {
			t.Errorf("%s: Needed returned false on a kernel older than 99.0", c.Name)
		}
		if c.until = (version{1, 0}); c.Needed() {
			t.Errorf("%s: Needed returned true on a kernel newer than 1.0", c.Name)
		}
		if (original.NotNeeded() != "") != (c.Bit == unix.CAP_SYS_RESOURCE) {
			t.Errorf("%s: NotNeeded returned %q", c.Name, original.NotNeeded())
		}
	}
}
