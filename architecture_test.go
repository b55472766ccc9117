// SPDX-License-Identifier: Apache-2.0

package halfopen

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"
)

const (
	architecture = "docs/architecture.md"
	module       = "github.com/halfopen/halfopen/"
)

func contents(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// function is a function that a walk names.
type function struct {
	dir, file, name string
	body            string   // its source
	through         string   // how what walks gets here, if no function calls another
	helpers         []string // functions that it calls, which are not on the way
}

func (f *function) String() string { return f.dir + "/" + f.file + ": " + f.name }

// last returns the name of a method without its type.
func (f *function) last() string { return f.name[strings.LastIndexAny(f.name, ".#")+1:] }

// walk is a section of the page: an item for each directory, with `FILE: FUNCTION` or, in
// the same file, `FUNCTION` for what is on the way, `FUNCTION()` for what such a function
// calls besides, and through `NAME` before one that no function before it calls.
type walk struct {
	functions, back int // as the heading says
	steps           []*function
}

var (
	walkHeading = regexp.MustCompile(`(?m)^## A (death|row)\b.*: (\d+) functions(?:, (\d+) steps? back)?$`)
	walkItem    = regexp.MustCompile(`(?m)^\d+\. \*\*([\w/]+)\*\* ((?:.*\n(?:   .*\n)*))`)
	walkSpan    = regexp.MustCompile("([Tt]hrough(?: a channel of its)?\\s+)?`([^`]+)`")
)

func parseWalk(t *testing.T, thing string) *walk {
	t.Helper()
	text := contents(t, architecture)
	for _, m := range walkHeading.FindAllStringSubmatchIndex(text, -1) {
		if text[m[2]:m[3]] != thing {
			continue
		}
		var w walk
		w.functions, _ = strconv.Atoi(text[m[4]:m[5]])
		if m[6] >= 0 {
			w.back, _ = strconv.Atoi(text[m[6]:m[7]])
		}
		section, _, _ := strings.Cut(text[m[1]:], "\n## ")
		for _, item := range walkItem.FindAllStringSubmatch(section+"\n", -1) {
			w.parseItem(t, item[1], item[2])
		}
		return &w
	}
	t.Fatalf("%s has no section %q with the number of functions", architecture, "## A "+thing)
	return nil
}

func (w *walk) parseItem(t *testing.T, dir, text string) {
	t.Helper()
	var file, through string
	for _, m := range walkSpan.FindAllStringSubmatch(text, -1) {
		name := m[2]
		if m[1] != "" {
			through = name
			continue
		}
		if helper, ok := strings.CutSuffix(name, "()"); ok && len(w.steps) > 0 {
			f := w.steps[len(w.steps)-1]
			f.helpers = append(f.helpers, helper)
			continue
		}
		if of, in, ok := strings.Cut(name, ": "); ok {
			file, name = of, in
		}
		f := &function{dir: dir, file: file, name: name, through: through}
		if f.body = bodyOf(filepath.Join(dir, file), name); f.body == "" {
			t.Errorf("%s names %s, which does not exist", architecture, f)
		}
		w.steps = append(w.steps, f)
		through = ""
	}
}

// bodyOf returns the source of a function, "" if the file has none of that name.
func bodyOf(path, name string) string {
	src, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	switch filepath.Ext(path) {
	case ".go":
		return goBody(src, name)
	case ".c", ".h":
		q := regexp.QuoteMeta(name)
		return regexp.MustCompile(`(?ms)^TP_WITH_FALLBACK\(` + q + `,.*?\)$|^int BPF_PROG\(` + q + `,.*?^\}|` +
			`^(?:static|int|__attribute__)\b[^;{}]*\b` + q + `\([^;{}]*\)\n\{.*?^\}`).FindString(string(src))
	case ".js":
		return jsBody(string(src), name)
	}
	return ""
}

func goBody(src []byte, name string) string {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "", src, 0)
	if err != nil {
		return ""
	}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		full := f.Name.Name
		if f.Recv != nil {
			of := f.Recv.List[0].Type
			if star, ok := of.(*ast.StarExpr); ok {
				of = star.X
			}
			full = fmt.Sprint(of) + "." + full
		}
		if full == name {
			return string(src[fset.Position(f.Pos()).Offset:fset.Position(f.End()).Offset])
		}
	}
	return ""
}

func jsBody(src, name string) string {
	if of, method, ok := strings.Cut(name, "."); ok {
		src = regexp.MustCompile(`(?ms)^(?:export )?(?:class ` + of + `|const ` + of + ` =) \{\n.*?^\}`).FindString(src)
		method = `^  (?:async )?` + regexp.QuoteMeta(method) + `\(`
		return regexp.MustCompile(`(?m)` + method + `.*\{.*\},?$|(?s:` + method + `.*?^  \})`).FindString(src)
	}
	return regexp.MustCompile(`(?m)(?s:^(?:export )?(?:async )?function ` + name + `\(.*?^\})|^(?:export )?const ` + name + ` = .*;$`).FindString(src)
}

var (
	comment  = regexp.MustCompile(`//.*`)
	receiver = regexp.MustCompile(`^func \((\w+) `)
)

// calls reports whether the source of f calls a function of that name, or passes it on.
func (f *function) calls(name string) bool {
	return regexp.MustCompile(`(^|\W)` + regexp.QuoteMeta(name) + `[([,)]`).MatchString(comment.ReplaceAllString(f.body, ""))
}

// leadsTo is calls for another function. A method calls one of its own type by its receiver.
func (f *function) leadsTo(other *function) bool {
	name := other.last()
	of, _, method := strings.Cut(other.name, ".")
	if m := receiver.FindStringSubmatch(f.body); m != nil && method && strings.HasPrefix(f.name, of+".") {
		name = m[1] + "." + name
	}
	return f.calls(name)
}

// fold makes the same of the name of a map in C and in Go.
func fold(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "")) }

func packageMentions(t *testing.T, dir, what string) bool {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		return slices.Contains([]string{".go", ".c", ".h", ".js"}, filepath.Ext(e.Name())) && !strings.HasSuffix(e.Name(), "_test.go") &&
			strings.Contains(fold(contents(t, filepath.Join(dir, e.Name()))), fold(what))
	})
}

// check holds each function against the one that it gets from what walks, and returns the
// number of steps back: to a package that called the one that hands on.
func (w *walk) check(t *testing.T) (back int) {
	t.Helper()
	from := make(map[*function]*function)
	for i, f := range w.steps {
		for _, h := range f.helpers {
			if !f.calls(h) {
				t.Errorf("%s does not call %s()", f, h)
			}
		}
		if i == 0 {
			continue
		}
		before := w.steps[:i]
		switch caller := latest(before, func(e *function) bool { return e.leadsTo(f) }); {
		case f.through != "":
			from[f] = w.steps[i-1]
			if !packageMentions(t, f.dir, f.through) || !packageMentions(t, w.steps[i-1].dir, f.through) {
				t.Errorf("%s does not lead from %s to %s: both packages have to mention it", f.through, w.steps[i-1], f)
			}
		case caller != nil:
			from[f] = caller
		case latest(before, func(e *function) bool { return f.leadsTo(e) }) != nil:
			// It called one of them, which returns to it.
		default:
			t.Errorf("no function before %s in its walk calls it or returns to it", f)
		}
		if from[f] == nil || from[f].dir == f.dir {
			continue
		}
		for e := from[f]; e != nil; e = from[e] {
			if e.dir == f.dir {
				back++
				break
			}
		}
	}
	return back
}

func latest(functions []*function, holds func(*function) bool) *function {
	for _, f := range slices.Backward(functions) {
		if holds(f) {
			return f
		}
	}
	return nil
}

func TestWalksNameTheFunctionsThatThereAre(t *testing.T) {
	for _, tt := range []struct {
		thing           string
		functions, back int // at most
	}{
		{"death", 30, 1},
		{"row", 34, 34},
	} {
		t.Run(tt.thing, func(t *testing.T) {
			w := parseWalk(t, tt.thing)
			if n := len(w.steps); n != w.functions || n > tt.functions || n < 10 {
				t.Errorf("%d functions are named, the heading says %d, and there may be %d", n, w.functions, tt.functions)
			}
			if back := w.check(t); tt.thing == "death" && back != w.back || back > tt.back {
				t.Errorf("%d steps back are made, the heading says %d, and there may be %d", back, w.back, tt.back)
			}
		})
	}
}

func TestFirstPageFitsOneScreen(t *testing.T) {
	if n := strings.Count(contents(t, architecture), "\n"); n > 50 {
		t.Errorf("%s has %d lines", architecture, n)
	}
}

// importsOf returns what each package of ours imports of ours, without its tests.
func importsOf(t *testing.T) map[string][]string {
	t.Helper()
	imports := make(map[string][]string)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		dir := filepath.Dir(path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || len(d.Name()) > 1 && d.Name()[0] == '.'):
			return filepath.SkipDir
		case filepath.Ext(path) != ".go" || dir == ".":
			return nil
		}
		if imports[dir] == nil {
			imports[dir] = []string{}
		}
		if strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range file.Imports {
			if p, ours := strings.CutPrefix(strings.Trim(i.Path.Value, `"`), module); ours && !slices.Contains(imports[dir], p) {
				imports[dir] = append(imports[dir], p)
			}
		}
		return nil
	})
	if err != nil || len(imports) == 0 {
		t.Fatalf("%d packages, %v", len(imports), err)
	}
	for _, list := range imports {
		slices.Sort(list)
	}
	return imports
}

// drawing has the lines of drawings: PACKAGE → the packages of ours that it imports.
var drawing = regexp.MustCompile(`(?m)^([\w/]+) +→ +(\S.*)$`)

func TestDrawingsHaveTheImportsThatThereAre(t *testing.T) {
	pages, err := filepath.Glob("docs/architecture/*.md")
	if err != nil {
		t.Fatal(err)
	}
	imports, drawn := importsOf(t), make(map[string]bool)
	for _, page := range append(pages, architecture) {
		for _, m := range drawing.FindAllStringSubmatch(contents(t, page), -1) {
			name, arrows := m[1], strings.Fields(m[2])
			if slices.Sort(arrows); m[2] == "nothing" {
				arrows = nil
			}
			switch there, ok := imports[name]; {
			case !ok || drawn[name]:
				t.Errorf("%s draws %s, which is not a package, or is drawn twice", page, name)
			case !slices.Equal(arrows, there):
				t.Errorf("%s draws\n%s → %s, but it is\n%s → %s", page, name, strings.Join(arrows, " "), name, strings.Join(there, " "))
			}
			drawn[name] = true
		}
	}
	for name := range imports {
		if !drawn[name] {
			t.Errorf("no page draws the package %s → %s", name, strings.Join(imports[name], " "))
		}
	}
}

// What the first page draws is all that the linter lets a package import of ours.
func TestLinterForbidsTheOtherArrows(t *testing.T) {
	var config struct {
		Linters struct {
			Settings struct {
				Depguard struct {
					Rules map[string]struct {
						Files, Allow []string
						Deny         []struct{ Pkg string }
					}
				}
			}
		}
	}
	if err := yaml.Unmarshal([]byte(contents(t, ".golangci.yml")), &config); err != nil {
		t.Fatal(err)
	}
	for _, m := range drawing.FindAllStringSubmatch(contents(t, architecture), -1) {
		name, arrows := m[1], strings.Fields(m[2])
		if strings.HasPrefix(name, "cmd/") {
			continue // which is above all
		}
		var allowed []string
		forbids := false
		for _, rule := range config.Linters.Settings.Depguard.Rules {
			if !slices.Contains(rule.Files, "**/"+name+"/*.go") {
				continue
			}
			for _, p := range rule.Allow {
				allowed = append(allowed, strings.TrimSuffix(strings.TrimPrefix(p, module), "$"))
			}
			for _, d := range rule.Deny {
				forbids = forbids || strings.HasPrefix(module, d.Pkg+"/")
			}
		}
		slices.Sort(arrows)
		slices.Sort(allowed)
		if !forbids || !slices.Equal(arrows, allowed) {
			t.Errorf("depguard lets %s import %q (and forbids the others: %v), drawn are %q", name, allowed, forbids, arrows)
		}
	}
}
