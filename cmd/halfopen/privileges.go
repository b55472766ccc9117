// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/internal/sandbox"
)

// Values of --privileges.
const (
	dropPrivileges = "drop"
	keepPrivileges = "keep"
)

// agentPolicy returns what an agent keeps that reads these files again and again. It
// stays root if it can read them only as root.
func agentPolicy(files []string) *sandbox.Policy {
	var directories []string
	keepUser := false
	for _, f := range files {
		directories = append(directories, filepath.Dir(f))
		if target, err := filepath.EvalSymlinks(f); err == nil {
			directories = append(directories, filepath.Dir(target))
		}
		keepUser = keepUser || !sandbox.Readable(f)
	}
	slices.Sort(directories)
	p := sandbox.Agent(slices.Compact(directories)...)
	p.KeepUser = keepUser
	return p
}

// enter enters a sandbox, and logs what the process may still do. What the kernel or the
// process's own privileges do not allow is left as it is: an agent with more privileges
// than it needs is better than none.
func enter(p *sandbox.Policy, logger *slog.Logger) {
	err := sandbox.Enter(p)
	attributes := []any{"uid", os.Geteuid(), "capabilities", capabilityNames(p.Capabilities)}
	if p.KeepUser && os.Geteuid() == 0 {
		attributes = append(attributes, "root_because", "only root can read the files of --web.config.file")
	}
	if err != nil {
		attributes = append(attributes, "not_possible", oneLine(err))
	}
	logger.Info("Dropped privileges", attributes...)
}

// capabilityNames returns a list of capabilities.
func capabilityNames(bits []int) string {
	var names []string
	for i := range bpf.Capabilities {
		if c := &bpf.Capabilities[i]; slices.Contains(bits, c.Bit) {
			names = append(names, c.Name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ",")
}
