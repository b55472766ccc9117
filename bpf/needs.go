// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// kernelTypes returns the types of the running kernel, not of an image on disk, and puts
// them into the cache.
func kernelTypes(cache *btf.Cache) (*btf.Spec, error) {
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoBTF
	}
	kernel, err := cache.Kernel()
	if err != nil {
		return nil, fmt.Errorf("read the kernel's BTF: %w", err)
	}
	return kernel, nil
}

// checkNeeds returns an error of one line if the kernel lacks something that the programs
// need. We cannot leave this to the verifier: if a field behind bpf_core_field_exists()
// has been renamed or is misspelt, the verifier takes it for one that the kernel does not
// have yet.
func checkNeeds(spec *ebpf.CollectionSpec, kernel *btf.Spec) error {
	lacking, err := lacks(spec, kernel)
	if err != nil || len(lacking) == 0 {
		return err
	}
	const most = 3
	if more := len(lacking) - most; more > 0 {
		lacking = append(lacking[:most], fmt.Sprintf("%d more", more))
	}
	var uts unix.Utsname
	_ = unix.Uname(&uts)                                                                          // it cannot fail
	return fmt.Errorf("Linux %s lacks %s: 5.10 or newer is needed; if this is, please report it", //nolint:staticcheck // a name
		unix.ByteSliceToString(uts.Release[:]), strings.Join(lacking, ", "))
}

const tracepointPrefix = "btf_trace_"

// lacks returns everything that the programs need and a kernel lacks: hooks, helpers,
// types and fields, unless a difference allows for that.
func lacks(spec *ebpf.CollectionSpec, kernel *btf.Spec) ([]string, error) {
	missing := make(map[string]bool)
	helpers := helpersOf(kernel)
	seen := make(map[string]bool)
	for _, prog := range spec.Programs {
		switch prog.AttachType {
		case ebpf.AttachTraceRawTp:
			missing["tracepoint "+prog.AttachTo] = !argument{prog.AttachTo, 0}.in(kernel)
		case ebpf.AttachTraceIter:
			missing["iterator "+prog.AttachTo] = !function("bpf_iter_" + prog.AttachTo).in(kernel)
		}
		if prog.Type == ebpf.RawTracepoint { // we run it without attaching it
			missing["runs of raw tracepoints"] = !function("bpf_prog_test_run_raw_tp").in(kernel)
		}
		for i := range prog.Instructions {
			ins := &prog.Instructions[i]
			if ins.IsBuiltinCall() {
				missing["helper "+strings.TrimPrefix(asm.BuiltinFunc(ins.Constant).String(), "Fn")] = !helpers[ins.Constant]
			}
			relo := btf.CORERelocationMetadata(ins)
			if relo == nil || seen[relo.String()] {
				continue
			}
			seen[relo.String()] = true
			w, err := wantedBy(relo, spec.Types)
			if err != nil {
				return nil, err
			}
			if err := w.check(kernel); err != nil {
				missing[err.Error()] = true
			}
		}
	}
	for _, d := range differences {
		if d.in(kernel) == nil {
			missing[d.known()] = true
		}
	}
	var all []string
	for what, is := range missing {
		if is {
			all = append(all, what)
		}
	}
	// Hooks first: a kernel that is too old lacks some.
	slices.SortFunc(all, func(a, b string) int {
		return strings.Compare(order(a)+a, order(b)+b)
	})
	return all, nil
}

func order(what string) string {
	for i, kind := range []string{"iterator ", "runs ", "tracepoint ", "helper "} {
		if strings.HasPrefix(what, kind) {
			return strconv.Itoa(i)
		}
	}
	return "9"
}

// helpersOf returns the set of the BPF helpers that a kernel has, by number.
func helpersOf(kernel *btf.Spec) map[int64]bool {
	numbers := make(map[int64]bool)
	var ids *btf.Enum
	if kernel.TypeByName("bpf_func_id", &ids) == nil {
		for _, v := range ids.Values {
			if v.Name != "__BPF_FUNC_MAX_ID" {
				numbers[int64(v.Value)] = true
			}
		}
	}
	return numbers
}

// want is something of the kernel that a program refers to: a type, a field, or a value
// of an enumeration.
type want struct {
	path  []string // the names of the type and of its members
	typ   btf.Type // as the program declares it
	exact bool     // the program reads it with the declared size
}

// relocation matches the String() of a relocation, which is the only way to read one.
var relocation = regexp.MustCompile(`^CORERelocation\((\w+), .*\[([\d:]+)\], local_id=(\d+)\)$`)

func wantedBy(relo *btf.CORERelocation, types *btf.Spec) (w want, err error) {
	m := relocation.FindStringSubmatch(relo.String())
	if m == nil {
		return w, fmt.Errorf("relocation %s is not understood", relo)
	}
	kind := m[1]
	id, err := strconv.ParseUint(m[3], 10, 32)
	if err != nil {
		return w, fmt.Errorf("relocation %s: %w", relo, err)
	}
	if w.typ, err = types.TypeByID(btf.TypeID(id)); err != nil {
		return w, fmt.Errorf("relocation %s: %w", relo, err)
	}
	w.path = []string{essential(w.typ.TypeName())}
	w.exact = kind == "byte_off"
	for i, accessor := range strings.Split(m[2], ":") {
		n, err := strconv.Atoi(accessor)
		if err != nil {
			return w, fmt.Errorf("relocation %s: %w", relo, err)
		}
		if i == 0 && !strings.HasPrefix(kind, "enumval_") {
			continue // the index in an array of the type
		}
		switch t := btf.UnderlyingType(w.typ).(type) {
		case *btf.Struct:
			w.path, w.typ = append(w.path, t.Members[n].Name), t.Members[n].Type
		case *btf.Union:
			w.path, w.typ = append(w.path, t.Members[n].Name), t.Members[n].Type
		case *btf.Array:
			w.typ = t.Type
		case *btf.Enum:
			w.path = append(w.path, essential(t.Values[n].Name))
		default:
			return w, fmt.Errorf("relocation %s of a %T is not understood", relo, t)
		}
	}
	return w, nil
}

// essential returns a name without its flavour: sock for sock___keepalive_timer.
func essential(name string) string {
	if i := strings.LastIndex(name, "___"); i > 0 {
		return name[:i]
	}
	return name
}

// check returns an error if a kernel does not have it, or has it smaller than the program
// reads it: that read would include the next field.
func (w want) check(kernel *btf.Spec) error {
	name := strings.Join(w.path, ".")
	has := fieldOf(kernel, w.path)
	if has == nil || !sameKind(w.typ, has) {
		if optional(name) {
			return nil
		}
		return errors.New(name)
	}
	if _, number := has.(*btf.Int); number && w.exact {
		want, err := btf.Sizeof(w.typ)
		if err != nil {
			return err
		}
		if size, err := btf.Sizeof(has); err != nil || size < want {
			return fmt.Errorf("%s of %d bytes (it has %d)", name, want, size)
		}
	}
	return nil
}

// optional reports whether a difference allows that a field is missing.
func optional(name string) bool {
	for _, d := range differences {
		for _, v := range d.variants {
			for _, f := range v.has {
				var is string
				switch f := f.(type) {
				case field:
					is = string(f)
				case pointer:
					is = string(f)
				default:
					continue
				}
				if name == is || strings.HasPrefix(name, is+".") {
					return true
				}
			}
		}
	}
	return false
}

// fieldOf returns the type of something in the kernel: of the type path[0], of a field
// of it by the names of members, or of an enumeration that has the value path[1]. It
// returns nil if the kernel does not have it. It looks into anonymous structs.
func fieldOf(kernel *btf.Spec, path []string) btf.Type {
	types, err := kernel.AnyTypesByName(path[0])
	if err != nil {
		return nil
	}
	for _, t := range types {
		if t = descend(t, path[1:]); t != nil {
			return t
		}
	}
	return nil
}

func descend(t btf.Type, path []string) btf.Type {
	t = btf.UnderlyingType(t)
	if len(path) == 0 {
		return t
	}
	var members []btf.Member
	switch t := t.(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	case *btf.Array:
		return descend(t.Type, path)
	case *btf.Enum:
		if slices.ContainsFunc(t.Values, func(v btf.EnumValue) bool { return v.Name == path[0] }) {
			return t
		}
	}
	for _, m := range members {
		if m.Name == path[0] {
			return descend(m.Type, path[1:])
		}
		if m.Name == "" {
			if found := descend(m.Type, path); found != nil {
				return found
			}
		}
	}
	return nil
}

// sameKind reports whether the loader accepts one type for the other in a relocation.
func sameKind(a, b btf.Type) bool {
	a, b = btf.UnderlyingType(a), btf.UnderlyingType(b)
	return composite(a) && composite(b) || reflect.TypeOf(a) == reflect.TypeOf(b)
}

func composite(t btf.Type) bool {
	switch t.(type) {
	case *btf.Struct, *btf.Union:
		return true
	}
	return false
}
