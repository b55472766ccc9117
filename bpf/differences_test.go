// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"bytes"
	"embed"
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

//go:embed halfopen.bpf.c *.h
var sources embed.FS

func runningKernel(t *testing.T) *btf.Spec {
	t.Helper()
	kernel, err := kernelTypes(btf.NewCache())
	if err != nil {
		t.Fatal(err)
	}
	return kernel
}

// wants returns what the programs refer to in the kernel, by relocation.
func wants(t *testing.T) map[*btf.CORERelocation]want {
	t.Helper()
	spec, err := readObject(nil)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[*btf.CORERelocation]want)
	for _, prog := range spec.Programs {
		for i := range prog.Instructions {
			if relo := btf.CORERelocationMetadata(&prog.Instructions[i]); relo != nil {
				if all[relo], err = wantedBy(relo, spec.Types); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return all
}

// noCode are the differences that the programs have no code for.
var noCode = []*difference{ownTables, silentReceivers, privateStacks}

func TestOnlyTheHeaderHasDifferences(t *testing.T) {
	files, err := sources.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		source, err := sources.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(`\w+___\w+|bpf_core_\w+_exists|const volatile`).FindAll(source, -1)
		if isCompat := f.Name() == "kernel_compat.h"; isCompat != (found != nil) {
			t.Errorf("%s has of what belongs into kernel_compat.h: %q", f.Name(), found)
		}
	}
}

func TestDifferencesAreThoseOfTheHeader(t *testing.T) {
	named := make(map[string]bool)
	for relo, w := range wants(t) {
		name := strings.Join(w.path, ".")
		named[name] = true
		if said := relo.String(); (strings.Contains(said, "___") || strings.Contains(said, "_exists,")) && !optional(name) {
			t.Errorf("%s may be missing, says the header, and no difference knows of it", name)
		}
	}
	spec, err := readObject(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range spec.Variables {
		if v.SectionName == ".rodata" && !slices.ContainsFunc(differences, func(d *difference) bool { return d.first == name }) {
			t.Errorf("%s is to be set before loading, and no difference does", name)
		}
	}
	for _, d := range differences {
		handled := d.first != "" || slices.Contains(noCode, d)
		for _, v := range d.variants {
			for _, f := range v.has {
				name := fmt.Sprint(f)
				for n := range named {
					handled = handled || n == name || strings.HasPrefix(n, name+".")
				}
			}
			if v.here == "" && v.lost == "" {
				t.Errorf("nothing is said where of %s the kernel has %v", d.name, v.has)
			}
		}
		if !handled {
			t.Errorf("no program makes a difference of %s", d.name)
		}
	}
}

// The versions that a variant names have its features. Because of backports, earlier or
// later versions may have them, too.
func TestVariantsAreThoseOfTheirVersions(t *testing.T) {
	kernel := runningKernel(t)
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	number := func(version string, otherwise int) int {
		var major, minor int
		if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
			return otherwise
		}
		return major<<16 + minor
	}
	running := number(unix.ByteSliceToString(uts.Release[:]), 0)
	for _, d := range differences {
		if d.in(kernel) == nil {
			t.Errorf("%s: no variant is there", d.name)
		}
		for _, v := range d.variants {
			for _, f := range v.has {
				if number(v.since, 0) <= running && running < number(v.until, 1<<30) && !f.in(kernel) {
					t.Errorf("%s: %s is said to be there%s", d.name, f, v.versions())
				}
			}
		}
	}
}

// misspell replaces a name of the kernel in an object by one of the same length that no
// kernel has.
func misspell(t *testing.T, object []byte, name string) (changed []byte, as string) {
	t.Helper()
	as = name[:len(name)-1] + "~"
	changed = bytes.ReplaceAll(object, []byte("\x00"+name+"\x00"), []byte("\x00"+as+"\x00"))
	if bytes.Equal(changed, object) {
		t.Fatalf("the object does not name %s", name)
	}
	return changed, as
}

func TestMisspeltNameIsRefused(t *testing.T) {
	object, as := misspell(t, _HalfopenBytes, "icsk_keepalive_timer")
	k, err := Load(Options{object: object})
	if err == nil {
		k.Close()
	}
	if err == nil || !strings.Contains(err.Error(), " lacks inet_connection_sock."+as+": ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error is %v", err)
	}
}

// The names are of things that all kernels have, that only some have, and of alternatives.
func TestMisspeltNamesAreMissed(t *testing.T) {
	names := map[string]string{}
	for _, name := range []string{"icsk_user_timeout", "skc_cookie", "sk_wmem_queued", "inet_timewait_sock", "TCP_WRITE_TIMER_DEFERRED", "bpf_iter__task_file"} {
		names[name] = ""
	}
	for _, d := range differences {
		for _, v := range d.variants {
			for _, f := range v.has {
				switch f.(type) {
				case field, pointer:
					if name := fmt.Sprint(f); !slices.Contains(noCode, d) {
						names[name[strings.LastIndex(name, ".")+1:]] = ""
					}
				}
			}
		}
	}
	object := _HalfopenBytes
	for name := range names {
		object, names[name] = misspell(t, object, name)
	}
	spec, err := readObject(object)
	if err != nil {
		t.Fatal(err)
	}
	lacking, err := lacks(spec, runningKernel(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, as := range names {
		if !strings.Contains(strings.Join(lacking, " "), as) {
			t.Errorf("%s is not missed in %q", name, lacking)
		}
	}
}

// The relocations that we call missing are those that the loader poisons.
func TestWhatIsMissingIsWhatTheLoaderMisses(t *testing.T) {
	kernel := runningKernel(t)
	n := 0
	for relo, w := range wants(t) {
		fixups, err := btf.CORERelocate([]*btf.CORERelocation{relo}, []*btf.Spec{kernel}, binary.LittleEndian, nil)
		if err != nil {
			t.Fatal(err)
		}
		fixup := fixups[0].String()
		missed := strings.HasSuffix(fixup, "=poison") || strings.HasSuffix(fixup, "_exists=1->0")
		has := fieldOf(kernel, w.path)
		if missing := has == nil || !sameKind(w.typ, has); missing != missed {
			t.Errorf("%s: missing %v, but the loader makes of it %s", strings.Join(w.path, "."), missing, fixup)
		}
		if missed {
			n++
		}
	}
	if n == 0 {
		t.Error("nothing is missing: no kernel has all variants")
	}
}

func TestFieldsThatGotSmallerAreRefused(t *testing.T) {
	kernel := runningKernel(t)
	w := want{path: []string{"sock", "sk_err"}, typ: &btf.Int{Size: 8}, exact: true}
	if err := w.check(kernel); err == nil || err.Error() != "sock.sk_err of 8 bytes (it has 4)" {
		t.Errorf("error is %v", err)
	}
	w.typ = &btf.Int{Size: 4}
	if err := w.check(kernel); err != nil {
		t.Error(err)
	}
}

// The types of a kernel before 5.10 lack iterators, tracepoints and helpers.
func TestOldKernelsAreRefused(t *testing.T) {
	old, err := btf.NewBuilder([]btf.Type{&btf.Struct{Name: "sock", Size: 4, Members: []btf.Member{
		{Name: "sk_err", Type: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}},
	}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := old.Spec()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := readObject(nil)
	if err != nil {
		t.Fatal(err)
	}
	err = checkNeeds(spec, kernel)
	want := regexp.MustCompile(`^Linux \S+ lacks iterator task, iterator task_file, runs of raw tracepoints, \d+ more: 5.10 or newer is needed; if this is, please report it$`)
	if err == nil || !want.MatchString(err.Error()) {
		t.Errorf("error is %v", err)
	}
}
