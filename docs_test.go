// SPDX-License-Identifier: Apache-2.0

package halfopen

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// files returns the files of the repository that a person writes or reads.
func files(t *testing.T, extension string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{".git", "bin", "libbpf", "uplot", "axe-core"}, d.Name()):
			return filepath.SkipDir
		case filepath.Ext(path) == extension:
			paths = append(paths, path)
		}
		return nil
	})
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d files with the extension %s, error %v", len(paths), extension, err)
	}
	return paths
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	fence   = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	noise   = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors returns what GitHub calls the headings of a page.
func anchors(text string) (names []string) {
	for _, h := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		name := noise.ReplaceAllString(strings.ToLower(h[1]), "")
		names = append(names, strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

func TestLinksOfDocumentsLeadSomewhere(t *testing.T) {
	checked := 0
	for _, page := range files(t, ".md") {
		text := read(t, page)
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			checked++
			path, anchor, _ := strings.Cut(m[1], "#")
			target, name := text, page
			if path != "" {
				name = filepath.Join(filepath.Dir(page), path)
				if _, err := os.Stat(name); err != nil {
					t.Errorf("%s: %s: %v", page, m[1], err)
					continue
				}
			}
			if anchor == "" {
				continue
			}
			if path != "" {
				target = read(t, name)
			}
			if !slices.Contains(anchors(target), anchor) {
				t.Errorf("%s: %s has no heading for #%s", page, name, anchor)
			}
		}
	}
	if checked == 0 {
		t.Error("no link was checked")
	}
}

// The steps of CONTRIBUTING.md name files, and the tests that fail for a forgotten one.
func TestContributingNamesWhatExists(t *testing.T) {
	text := fence.ReplaceAllString(read(t, "CONTRIBUTING.md"), "")
	named := regexp.MustCompile("`((?:[\\w.-]+/)+[\\w.-]+)`").FindAllStringSubmatch(text, -1)
	for _, m := range named {
		if strings.Contains(m[1], "ALERT") { // stands for a name
			continue
		}
		if _, err := os.Stat(m[1]); err != nil {
			t.Errorf("%s: %v", m[1], err)
		}
	}
	tests := make(map[string]bool)
	for _, path := range files(t, ".go") {
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(read(t, path), -1) {
			tests[m[1]] = true
		}
	}
	mentioned := regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(text, -1)
	for _, name := range mentioned {
		if !tests[name] {
			t.Errorf("there is no test %s", name)
		}
	}
	if len(named) < 20 || len(mentioned) < 10 {
		t.Errorf("only %d files and %d tests are named: does this test still find them?", len(named), len(mentioned))
	}
}
