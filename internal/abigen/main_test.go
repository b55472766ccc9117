// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/halfopen/halfopen/bpf/abi"
)

func object(t *testing.T) *btf.Spec {
	t.Helper()
	types, err := btf.LoadSpec("../../bpf/halfopen_bpfel.o")
	if err != nil {
		t.Fatal(err)
	}
	return types
}

func TestPackageABIIsGeneratedFromTheObject(t *testing.T) {
	got, err := generate(object(t))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("../../bpf/abi/abi.go")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Error("bpf/abi/abi.go is not what the object gives: run make generate")
	}
}

// The compiler of Go lays out structs by its own rules.
func TestGoStructsHaveTheLayoutOfTheObject(t *testing.T) {
	types := object(t)
	all := []any{
		abi.Conn{}, abi.Event{}, abi.FDHolder{}, abi.Holder{}, abi.Counters{}, abi.CensusCounts{}, abi.Destination{}, abi.RiskCounts{},
		abi.PeerHostKey{}, abi.PeerHost{}, abi.Cursor{}, abi.OwnTable{}, abi.WalkBatch{}, abi.NetnsSysctls{}, abi.NetnsList{}, abi.Batch{},
		abi.Watch{}, abi.Unread{}, abi.PendingDeath{},
	}
	if len(all) != len(structs) {
		t.Fatalf("%d structs are compared, %d are generated", len(all), len(structs))
	}
	for i, v := range all {
		has := reflect.TypeOf(v)
		var want *btf.Struct
		if err := types.TypeByName(structs[i].name, &want); err != nil {
			t.Fatal(err)
		}
		if has.Name() != identifier(want.Name) || has.Size() != uintptr(want.Size) {
			t.Errorf("%s has %d bytes, struct %s has %d", has.Name(), has.Size(), want.Name, want.Size)
		}
		for _, m := range want.Members {
			f, ok := has.FieldByName(identifier(m.Name))
			size, err := btf.Sizeof(m.Type)
			if err != nil {
				t.Fatal(err)
			}
			if !ok || f.Offset != uintptr(m.Offset.Bytes()) || f.Type.Size() != uintptr(size) {
				t.Errorf("%s.%s is %d bytes at %d, expected %d at %d", has.Name(), m.Name, f.Type.Size(), f.Offset, size, m.Offset.Bytes())
			}
		}
	}
}

func TestATypeThatIsInNoTableIsAnError(t *testing.T) {
	saved := enums
	defer func() { enums = saved }()
	enums = enums[1:]
	if _, err := generate(object(t)); err == nil || !strings.Contains(err.Error(), saved[0].name) {
		t.Errorf("without %s: %v", saved[0].name, err)
	}
}

func TestIdentifier(t *testing.T) {
	for c, want := range map[string]string{
		"conn": "Conn", "walk_batch": "WalkBatch", "fin_wait1": "FinWait1", "pad2": "Pad2", "fd_holder": "FDHolder",
	} {
		if got := identifier(c); got != want {
			t.Errorf("%s is %s, expected %s", c, got, want)
		}
	}
}
