// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestVersionIsThatOfPrometheusTools(t *testing.T) {
	for _, args := range []string{"version", "--version"} {
		status, stdout, stderr := halfopen(t, args)
		if status != exitDone || stderr != "" || !strings.HasPrefix(stdout, "halfopen, version ") || !strings.Contains(stdout, "go version:") {
			t.Errorf("%s: status %d, stderr %q, stdout\n%s", args, status, stderr, stdout)
		}
		for line := range strings.Lines(stdout) {
			if f := strings.Fields(line); strings.HasSuffix(f[len(f)-1], ":") || f[len(f)-1] == "unknown" {
				t.Errorf("%s: says nothing: %q", args, line)
			}
		}
	}
}

func TestLicensesAreThoseOfEverythingLinked(t *testing.T) {
	status, stdout, stderr := halfopen(t, "version", "--licenses")
	if status != exitDone || stderr != "" || !strings.HasPrefix(stdout, "halfopen, version ") {
		t.Errorf("status %d, stderr %q, stdout\n%.200s", status, stderr, stdout)
	}
	cmd := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}{{end}}{{end}}", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is built
	list, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	modules := strings.Fields(strings.ReplaceAll(string(list), " ", "@"))
	if len(modules) < 10 {
		t.Errorf("go list names only %q", modules)
	}
	slices.Sort(modules)
	for _, m := range slices.Compact(modules) {
		if path, version, _ := strings.Cut(m, "@"); !strings.Contains(stdout, "\n"+path+" "+version+" (") {
			t.Errorf("no licence of %s %s: make generate", path, version)
		}
	}
	for _, file := range []string{
		"../../LICENSE", "../../bpf/LICENSE", "../../bpf/LICENSE.BSD-2-Clause", "../../bpf/LICENSE.GPL-2.0",
		"../../bpf/libbpf/LICENSE.BSD-2-Clause", "../../bpf/libbpf/LICENSE.LGPL-2.1", "../../exporter/web/uplot/LICENSE",
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(stdout, strings.TrimSpace(string(text))) {
			t.Errorf("%s is not in it: make generate", file)
		}
	}
	if !strings.Contains(stdout, "\nGo (LICENSE)\n") {
		t.Error("no licence of Go's standard library")
	}
}
