// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/escape"
)

func TestMoment(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "-", 46 * time.Microsecond: "46µs", 1250 * time.Microsecond: "1.2ms",
		40 * time.Millisecond: "40ms", 450 * time.Millisecond: "450ms", 3 * time.Second: "3s",
	} {
		if got := moment(d); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for _, tt := range []struct{ name, s, want string }{
		{"a name is left alone", "postgres: 14/main", "postgres: 14/main"},
		{"so is one in any script", "données-日本", "données-日本"},
		{"colours do not get through", "\x1b[31mred", `\x1b[31mred`},
		{"a new line does not begin one", "a\nb\r\tc", `a\nb\r\tc`},
		{"a backslash is told from an escape", `\x1b`, `\\x1b`},
		{"quotes are nothing special", `it's "it"`, `it's "it"`},
		{"bytes that are no text", "a\xff\xc3", `a\xff\xc3`},
		{"C1 control sequence introducer", "\u009b31m", `\u009b31m`},
		{"the same as a single byte", "\x9b31m", `\x9b31m`},
		{"text that turns around", "a\u202eb\u2066c", `a\u202eb\u2066c`},
		{"zero width", "a\u200bb\u200d\ufeff", `a\u200bb\u200d\ufeff`},
		{"letters that show nothing", "\u3164\u115f", `\u3164\u115f`},
		{"marks on marks", "e\u0301\u0301", `e\u0301\u0301`},
		{"tags", "\U000e0041", `\U000e0041`},
		{"delete and null", "\x7f\x00", `\x7f\x00`},
		{"a replacement character of its own", "\ufffd", "\ufffd"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := escape.Text(tt.s); got != tt.want {
				t.Errorf("%q is printed as %s, want %s", tt.s, got, tt.want)
			}
		})
	}
}

func FuzzPrintable(f *testing.F) {
	for _, s := range []string{"postgres", "\x1b]0;x\a", "\xff\u202e\u009b", `\`, "日本", "\u3164e\u0301"} {
		f.Add(s, 8)
	}
	f.Fuzz(func(t *testing.T, s string, room int) {
		p := escape.Text(s)
		if !utf8.ValidString(p) {
			t.Fatalf("%q is printed as no text: %q", s, p)
		}
		for _, r := range p {
			if unicode.IsControl(r) || !unicode.IsPrint(r) || unicode.In(r, unicode.Cf, unicode.M, unicode.Bidi_Control) {
				t.Fatalf("%q is printed with %U", s, r)
			}
		}
		if !strings.Contains(s, `\`) && p != s && !strings.Contains(p, `\`) {
			t.Fatalf("%q is printed as %q, without saying so", s, p)
		}
		if room = room&63 + 1; columns(cut(p, room)) > room {
			t.Fatalf("%q does not fit %d columns", cut(p, room), room)
		}
	})
}

func TestCutCountsColumns(t *testing.T) {
	for _, tt := range []struct {
		name, s string
		room    int
		want    string
	}{
		{"what fits is left alone", "postgres", 8, "postgres"},
		{"what does not fit says so", "postgres", 7, "postgr…"},
		{"wide characters take two", "日本日本", 8, "日本日本"},
		{"and are not halved", "日本日本", 6, "日本…"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := cut(tt.s, tt.room); got != tt.want {
				t.Errorf("%q in %d columns is %q, want %q", tt.s, tt.room, got, tt.want)
			}
		})
	}
}

func TestOwner(t *testing.T) {
	process := func(comm string) *api.Process { return &api.Process{PID: 812, Comm: comm} }
	for _, tt := range []struct {
		name string
		o    api.Ownership
		want string
	}{
		{"a process by name and number", api.Ownership{UID: new(uint32), Process: process("postgres")}, "postgres[812]"},
		{"a process with a name of escapes", api.Ownership{UID: new(uint32), Process: process(strings.Repeat("\x1b", 15))}, `\x1b\x1b\x1b\x1b\x1b\x1…` + "[812]"},
		{"closed by its application", api.Ownership{}, "(orphaned)"},
		{"in a listener's queue", api.Ownership{Accepted: new(bool)}, "(not accepted)"},
		{"nobody was found", api.Ownership{UID: new(uint32)}, "-"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := owner(&tt.o); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

func TestWhatAConnectionRunsIn(t *testing.T) {
	const uid = "5b3a8f0e-1111-2222-3333-444444444444"
	id, path := strings.Repeat("3f2a", 16), "/x"
	in := func(change func(*api.Ownership)) api.Ownership {
		o := api.Ownership{UID: new(uint32), Process: &api.Process{PID: 812, Comm: "java"}, Cgroup: &path}
		change(&o)
		return o
	}
	for _, tt := range []struct {
		name             string
		o                api.Ownership
		short, all, with string
	}{
		{"nothing", api.Ownership{}, "-", "-", "(orphaned)"},
		{"a group", in(func(*api.Ownership) {}), "-", "/x", "java[812]"},
		{"a unit", in(func(o *api.Ownership) { o.Unit = new("x.service") }), "x.service", "x.service", "java[812]"},
		{
			"a container", in(func(o *api.Ownership) { o.ContainerID = &id }),
			"container 3f2a3f2a3f2a", "container 3f2a3f2a3f2a", "java[812], in container 3f2a3f2a3f2a",
		},
		{
			"a named container", in(func(o *api.Ownership) { o.ContainerID, o.Container = &id, new("shop_db_1") }),
			"container shop_db_1", "container shop_db_1", "java[812], in container shop_db_1",
		},
		{
			"a pod", in(func(o *api.Ownership) { o.ContainerID, o.PodUID = &id, new(uid) }),
			"pod 5b3a8f0e", "pod 5b3a8f0e container 3f2a3f2a3f2a", "java[812], in pod 5b3a8f0e container 3f2a3f2a3f2a",
		},
		{
			"a named pod", in(func(o *api.Ownership) {
				o.ContainerID, o.PodUID, o.Namespace, o.Pod, o.Container = &id, new(uid), new("shop"), new("checkout-xhnvf"), new("server")
			}),
			"pod shop/checkout-xhnvf", "pod shop/checkout-xhnvf container server", "java[812], in pod shop/checkout-xhnvf container server",
		},
		{
			"hostile names, and no process", in(func(o *api.Ownership) {
				o.Process, o.PodUID, o.Namespace, o.Pod, o.ContainerID, o.Container = nil, new(uid), new("\x1b[2J"), new("\u202e"), &id, new("a\nb")
			}),
			`pod \x1b[2J/\u202e`, `pod \x1b[2J/\u202e container a\nb`, `pod \x1b[2J/\u202e container a\nb`,
		},
	} {
		if got := runsIn(&tt.o); got != tt.short {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.short)
		}
		if got := runsInAll(&tt.o); got != tt.all {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.all)
		}
		if got := ownerIn(&tt.o); got != tt.with {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.with)
		}
	}
}
