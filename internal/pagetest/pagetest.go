// SPDX-License-Identifier: Apache-2.0

// Package pagetest runs the modules of the live page that need no DOM, so that tests can
// compare what JavaScript computes with what Go does. goja runs the JavaScript. It supports
// neither modules nor Unicode properties in regular expressions: Load translates both.
package pagetest

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/dop251/goja"
	"github.com/dop251/goja_nodejs/require"
	"github.com/dop251/goja_nodejs/url"
)

// Page is the page's modules in a JavaScript runtime. It is not safe for concurrent use.
type Page struct {
	t  testing.TB
	vm *goja.Runtime
}

// Load evaluates modules such as "format", and the modules that they import. In expressions
// each is an object of its name. read returns the source of a path such as /web/format.js.
func Load(t testing.TB, read func(path string) ([]byte, error), modules ...string) *Page {
	t.Helper()
	p := &Page{t, goja.New()}
	registry := require.NewRegistry(require.WithLoader(func(path string) ([]byte, error) {
		source, err := read(path)
		if err != nil {
			return nil, err
		}
		return script(path, string(source))
	}))
	require := registry.Enable(p.vm)
	url.Enable(p.vm) // URLSearchParams
	for _, name := range modules {
		module, err := require.Require("/web/" + name + ".js")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := p.vm.Set(name, module); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// Run evaluates statements.
func (p *Page) Run(statements string) {
	p.t.Helper()
	if _, err := p.vm.RunString(statements); err != nil {
		p.t.Fatalf("%s: %v", statements, err)
	}
}

// Eval returns the value of an expression, in which each %s is an argument as JSON. null
// and undefined are the zero value.
func Eval[T any](p *Page, expression string, args ...any) T {
	p.t.Helper()
	encoded := make([]any, len(args))
	for i, arg := range args {
		b, err := json.Marshal(arg)
		if err != nil {
			p.t.Fatal(err)
		}
		encoded[i] = string(b)
	}
	expression = fmt.Sprintf(expression, encoded...)
	v, err := p.vm.RunString("JSON.stringify(" + expression + ") ?? 'null'")
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	var value T
	if err := json.Unmarshal([]byte(v.String()), &value); err != nil {
		p.t.Fatalf("%s is %s: %v", expression, v, err)
	}
	return value
}

var (
	imports    = regexp.MustCompile(`(?m)^import \{ ([^}]+) \} from ('[^']+');$`)
	exports    = regexp.MustCompile(`(?m)^export ((?:const|class|(?:async )?function) (\w+))`)
	others     = regexp.MustCompile(`(?m)^(?:import|export)\b.*$`)
	properties = regexp.MustCompile(`\\p\{(\w+)\}`)
)

// script returns a module as a script for require. It translates the forms of import and
// export that the page uses, and refuses others.
func script(path, module string) ([]byte, error) {
	s := imports.ReplaceAllStringFunc(module, func(line string) string {
		m := imports.FindStringSubmatch(line)
		return "const { " + strings.ReplaceAll(m[1], " as ", ": ") + " } = require(" + m[2] + ");"
	})
	var end strings.Builder
	for _, m := range exports.FindAllStringSubmatch(s, -1) {
		fmt.Fprintf(&end, "exports.%[1]s = %[1]s;\n", m[2])
	}
	s = exports.ReplaceAllString(s, "$1")
	if line := others.FindString(s); line != "" {
		return nil, fmt.Errorf("%s: pagetest cannot translate this import or export: %s", path, line)
	}
	var err error
	s = properties.ReplaceAllStringFunc(s, func(property string) string {
		name := properties.FindStringSubmatch(property)[1]
		tables := propertyTables(name)
		if tables == nil {
			err = fmt.Errorf("%s: pagetest does not know the Unicode property %s", path, name)
		}
		return ranges(tables)
	})
	return []byte("'use strict'; " + s + end.String()), err // lines keep their numbers
}

// propertyTables returns the characters that have a Unicode property, nil if it is unknown.
func propertyTables(name string) []*unicode.RangeTable {
	if name == "Default_Ignorable_Code_Point" { // DerivedCoreProperties.txt, with a few format characters too many
		return []*unicode.RangeTable{unicode.Other_Default_Ignorable_Code_Point, unicode.Cf, unicode.Variation_Selector}
	}
	if table := unicode.Categories[name]; table != nil {
		return []*unicode.RangeTable{table}
	}
	return nil
}

// ranges writes characters as part of a character class.
func ranges(tables []*unicode.RangeTable) string {
	var b strings.Builder
	add := func(lo, hi, stride uint32) {
		if stride == 1 {
			fmt.Fprintf(&b, `\u{%x}-\u{%x}`, lo, hi)
			return
		}
		for c := lo; c <= hi; c += stride {
			fmt.Fprintf(&b, `\u{%x}`, c)
		}
	}
	for _, table := range tables {
		for _, r := range table.R16 {
			add(uint32(r.Lo), uint32(r.Hi), uint32(r.Stride))
		}
		for _, r := range table.R32 {
			add(r.Lo, r.Hi, r.Stride)
		}
	}
	return b.String()
}
