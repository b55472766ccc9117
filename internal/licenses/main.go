// SPDX-License-Identifier: Apache-2.0

// Licenses writes the text that `halfopen version --licenses` prints: the licences and
// notices of all code in the binary, with the version of each module. `make generate` runs
// it. It fails if a module has no licence.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "licenses:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: licenses FILE")
	}
	goroot, err := output(nil, "go", "env", "GOROOT")
	if err != nil {
		return err
	}
	parts := []part{
		{name: "halfopen", dirs: []string{"."}},
		{name: "halfopen's BPF programs", dirs: []string{"bpf"}},
		{name: "libbpf", versionIn: "bpf/libbpf/README.md", dirs: []string{"bpf/libbpf"}},
		{name: "uPlot", versionIn: "exporter/web/uplot/uPlot.esm.js", dirs: []string{"exporter/web/uplot"}},
		{name: "Go", dirs: []string{strings.TrimSpace(string(goroot))}}, // the version that builds the binary
	}
	modules, err := linked("./cmd/halfopen")
	if err != nil {
		return err
	}
	text, err := notices(append(parts, modules...))
	if err != nil {
		return err
	}
	return os.WriteFile(args[0], text, 0o644)
}

// A part is code in the binary that has its own licence.
type part struct {
	name, version string
	versionIn     string   // the file whose first version number is the version
	dirs          []string // directories that have its licences
}

// architectures are the architectures for which the binary is built. One text has the
// notices for all of them.
var architectures = []string{"amd64", "arm64", "riscv64"}

// linked returns the modules that a command is linked with, sorted by name.
// The directories of a module are those of its linked packages and their parents, because
// a package may have its own licence.
func linked(command string) ([]part, error) {
	modules := make(map[string]*part)
	for _, arch := range architectures {
		list, err := output([]string{"GOOS=linux", "GOARCH=" + arch, "CGO_ENABLED=0", "GOFLAGS="},
			"go", "list", "-deps", "-json=Dir,Module", command)
		if err != nil {
			return nil, err
		}
		for dec := json.NewDecoder(bytes.NewReader(list)); ; {
			var p struct {
				Dir    string
				Module *struct {
					Path, Version, Dir string
					Main               bool
				}
			}
			if err := dec.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, fmt.Errorf("decode the output of go list: %w", err)
			}
			if p.Module == nil || p.Module.Main { // the standard library, or a package of halfopen
				continue
			}
			m := modules[p.Module.Path]
			if m == nil {
				m = &part{name: p.Module.Path, version: p.Module.Version}
				modules[m.name] = m
			}
			for dir := p.Dir; ; dir = filepath.Dir(dir) {
				m.dirs = append(m.dirs, dir)
				if dir == p.Module.Dir {
					break
				}
			}
		}
	}
	var sorted []part
	for _, m := range modules {
		slices.Sort(m.dirs)
		m.dirs = slices.Compact(m.dirs)
		sorted = append(sorted, *m)
	}
	slices.SortFunc(sorted, func(a, b part) int { return cmp.Compare(a.name, b.name) })
	return sorted, nil
}

var (
	notice = regexp.MustCompile(`(?i)^(licen[sc]e|copying|notice|patents|unlicense)([.-].*)?$`)
	number = regexp.MustCompile(`[0-9]+\.[0-9]+\.[0-9]+`)
)

const rule = "================================================================================\n"

// notices prints each licence text once, below the names of its parts.
func notices(parts []part) ([]byte, error) {
	type shared struct{ text, of string }
	var texts []*shared
	for _, p := range parts {
		if p.versionIn != "" {
			body, err := os.ReadFile(p.versionIn)
			if err != nil {
				return nil, err
			}
			if p.version = string(number.Find(body)); p.version == "" {
				return nil, fmt.Errorf("%s does not name a version of %s", p.versionIn, p.name)
			}
		}
		found := false
		for _, dir := range p.dirs {
			entries, err := os.ReadDir(dir)
			if err != nil {
				return nil, err
			}
			for _, e := range entries {
				if !notice.MatchString(e.Name()) || strings.HasSuffix(e.Name(), ".go") || !e.Type().IsRegular() {
					continue
				}
				found = true
				body, err := os.ReadFile(filepath.Join(dir, e.Name()))
				if err != nil {
					return nil, err
				}
				text := strings.ReplaceAll(string(body), "\r\n", "\n")
				text = strings.TrimRight(strings.TrimLeft(text, "\n"), " \n") + "\n"
				i := slices.IndexFunc(texts, func(s *shared) bool { return s.text == text })
				if i < 0 {
					i, texts = len(texts), append(texts, &shared{text: text})
				}
				texts[i].of += strings.Join(strings.Fields(p.name+" "+p.version+" ("+e.Name()+")"), " ") + "\n"
			}
		}
		if !found {
			return nil, fmt.Errorf("%s has no licence in %s", p.name, strings.Join(p.dirs, ", "))
		}
	}
	var out bytes.Buffer
	for _, s := range texts {
		out.WriteString(rule + s.of + rule + "\n" + s.text + "\n")
	}
	return out.Bytes(), nil
}

// output runs a command with additional environment variables and returns its output.
func output(env []string, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	return out, nil
}
