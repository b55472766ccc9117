// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf/abi"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/conn/conntest"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 123456789, time.UTC)

var rules = conn.Rules{
	IdleAfter: 5 * time.Minute, StalledAfter: 1500 * time.Millisecond, ZombieUnanswered: 3,
	ZombieSilence: 10*time.Second + time.Nanosecond, Middleboxes: conn.Middleboxes{
		Default: 350 * time.Second,
		To:      map[netip.Prefix]time.Duration{netip.MustParsePrefix("10.0.0.0/8"): time.Minute, netip.MustParsePrefix("2001:db8::/32"): time.Hour},
	}, UnreadAfter: 30 * time.Second, HZ: conntest.HZ,
}

func header() Header {
	return Header{Halfopen: "v0.2.0", Kernel: "6.12.1", MonotonicZero: noon.Add(-time.Hour), Rules: NewRules(&rules)}
}

// fill sets each field that v has, also those of its parts, to a value other than 0.
func fill(t *testing.T, v reflect.Value) {
	t.Helper()
	switch v.Type() {
	case reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(noon.Add(time.Hour)))
		return
	case reflect.TypeFor[netip.Addr]():
		v.Set(reflect.ValueOf(netip.MustParseAddr("2001:db8::7")))
		return
	case reflect.TypeFor[[16]uint8](): // an address
		v.Set(reflect.ValueOf([16]uint8{0x20, 1, 0xd, 0xb8, 15: 7}))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if name := v.Type().Field(i).Name; name != "_" && !strings.HasPrefix(name, "Pad") {
				fill(t, v.Field(i))
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(t, v.Index(0))
		fill(t, v.Index(1))
	case reflect.Array:
		for i := range v.Len() {
			fill(t, v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 2 {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(t, key)
			fill(t, value)
			v.SetMapIndex(key, value)
		}
	case reflect.String:
		v.SetString("what \x1b[31m \" is \u2028 this\x00")
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1<<v.Type().Bits() - 3)
	case reflect.Int, reflect.Int64:
		v.SetInt(77)
	default:
		t.Fatalf("%s cannot be filled", v.Type())
	}
}

// whole returns one fact of each kind, with all fields set that this kind can have.
func whole(t *testing.T) (facts []*conn.Fact) {
	t.Helper()
	var all conn.Fact
	v := reflect.ValueOf(&all).Elem()
	for i := range v.NumField() {
		if v.Type().Field(i).Name != "Kind" {
			fill(t, v.Field(i))
		}
	}
	all.Census.Rows = nil // a recording leaves them out, since no notice, death or count depends on them
	has := map[conn.FactKind][]string{
		conn.FactEvent: {"Event"}, conn.FactWatch: {"Conn"}, conn.FactSweep: {}, conn.FactCensus: {"Census"},
		conn.FactOwners: {"Owners"}, conn.FactObstacles: {"Obstacles"},
	}
	used := []string{"Kind", "At"}
	for kind := range conn.FactKind(len(has)) {
		f := all
		f.Kind = kind
		v := reflect.ValueOf(&f).Elem()
		for i := range v.NumField() {
			if name := v.Type().Field(i).Name; name != "Kind" && name != "At" && !slices.Contains(has[kind], name) {
				v.Field(i).SetZero()
			}
		}
		used = append(used, has[kind]...)
		facts = append(facts, &f)
	}
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; !slices.Contains(used, name) {
			t.Errorf("no recording has the field %s of a fact", name)
		}
	}
	return facts
}

// recordingOf returns a complete recording of these facts.
func recordingOf(t testing.TB, facts ...*conn.Fact) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := newWriter(&b, header())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range facts {
		if err := w.fact(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.end(endStopped); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// read reads a recording to its end.
func read(r io.Reader) (facts []*conn.Fact, reader *Reader, err error) {
	if reader, err = NewReader(r); err != nil {
		return nil, nil, err
	}
	for {
		f, err := reader.Next()
		if err != nil {
			return facts, reader, err
		}
		facts = append(facts, f)
	}
}

func TestEverythingOfAFactIsRecorded(t *testing.T) {
	want := whole(t)
	text := recordingOf(t, want...)
	got, r, err := read(bytes.NewReader(text))
	if err != io.EOF || r.End != endStopped || r.Lost != 0 {
		t.Fatalf("%v, end %q, %d lost\n%s", err, r.End, r.Lost, text)
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(abi.Conn{}, abi.Event{}, abi.CensusCounts{})); d != "" {
		t.Errorf("(-recorded +read)\n%s", d)
	}
	wantHeader := header()
	wantHeader.Format = Format
	if d := cmp.Diff(wantHeader, r.Header); d != "" {
		t.Errorf("header (-recorded +read)\n%s", d)
	}
	if got := r.Header.Rules.Conn(); !reflect.DeepEqual(got, rules) {
		t.Errorf("rules %+v, want %+v", got, rules)
	}
}

func TestAddressesAreReadable(t *testing.T) {
	v4 := conntest.With(func(c *abi.Conn) {
		c.Family, c.Laddr, c.Raddr = 2, [16]uint8{192, 0, 2, 1}, [16]uint8{10, 0, 0, 2}
	})
	v6 := conntest.With(func(c *abi.Conn) {
		c.Family, c.Laddr, c.Raddr = 10, [16]uint8{10: 0xff, 0xff, 192, 0, 2, 1}, [16]uint8{0xfe, 0x80, 15: 1}
	})
	odd := conntest.With(func(c *abi.Conn) { c.Family, c.Laddr = 2, [16]uint8{192, 0, 2, 1, 15: 1} })
	text := recordingOf(t, &conn.Fact{Kind: conn.FactWatch, At: noon, Conn: v4}, &conn.Fact{Kind: conn.FactWatch, At: noon, Conn: v6},
		&conn.Fact{Kind: conn.FactWatch, At: noon, Conn: odd})
	for _, want := range []string{`"laddr":"192.0.2.1","raddr":"10.0.0.2"`, `"laddr":"::ffff:192.0.2.1","raddr":"fe80::1"`, `"at":"2026-11-21T12:00:00.123456789Z"`} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	got, _, _ := read(bytes.NewReader(text))
	for i, want := range []*abi.Conn{v4, v6, odd} {
		if *got[i].Conn != *want {
			t.Errorf("%+v, want %+v", got[i].Conn, want)
		}
	}
}

func TestARecordingThatBreaksOffIsGoodUntilThere(t *testing.T) {
	want := whole(t)
	text := recordingOf(t, want...)
	lines := bytes.SplitAfter(text, []byte("\n"))
	head := len(lines[0])
	for n := head - 1; n < len(text)-1; n += 1 + n%101 { // the last line is complete without its newline
		got, _, err := read(bytes.NewReader(text[:n]))
		if !errors.Is(err, ErrNoEnd) || len(got) > len(want) {
			t.Fatalf("%d facts and %v of the first %d bytes\n%s", len(got), err, n, text[:n])
		}
		if complete := bytes.Count(text[:n+1], []byte("\n")) - 1; len(got) != complete {
			t.Fatalf("%d facts of %d complete ones", len(got), complete)
		}
	}
	for n := range len(magic) + 100 {
		if _, err := NewReader(bytes.NewReader(text[:n])); !errors.Is(err, ErrNoRecording) {
			t.Errorf("the first %d bytes: %v", n, err)
		}
	}
}

func TestReaderRejectsOtherFiles(t *testing.T) {
	const head = `{"halfopen_recording":1,"halfopen":"v9.9","rules":{"hz":250,"idle_after_seconds":300,"stalled_after_seconds":10,"zombie_unanswered":3,"zombie_silence_seconds":10,"middlebox_timeout_seconds":350}}` + "\n"
	for _, tt := range []struct{ name, text, want string }{
		{"an empty file", "", "this is not a recording of halfopen"},
		{"something else", "root:x:0:0:root:/root:/bin/bash\n", "this is not a recording of halfopen"},
		{"a later version of the format", `{"halfopen_recording":2,"halfopen":"v9.9","more":1}`, `it is a recording of format 2, and this halfopen reads format 1: use halfopen "v9.9", which wrote it`},
		{"no jiffies", strings.Replace(head, "250", "0", 1), "its rules have 0 jiffies per second"},
		{"an endless duration", strings.Replace(head, "350", "1e300", 1), "its rules have a duration of 1e+300 s"},
		{"a later field", head + `{"fact":"sweep","at":"2026-11-21T12:00:00Z","moon":"full"}`, `line 2 of the recording cannot be read: json: unknown field "moon": use halfopen "v9.9", which wrote it`},
		{"a later field of a socket", head + `{"fact":"watch","at":"2026-11-21T12:00:00Z","conn":{"cookie":1,"moon":5}}`, `line 2 of the recording cannot be read: the field "moon" is unknown: use halfopen "v9.9", which wrote it`},
		{"a later kind", head + `{"fact":"moon","at":"2026-11-21T12:00:00Z"}`, `line 2 of the recording cannot be read: the kind "moon" of the fact is unknown`},
		{"a fact without its object", head + `{"fact":"event","at":"2026-11-21T12:00:00Z"}`, "line 2 of the recording cannot be read: the object that belongs to its kind is missing"},
		{"a number that is too large", head + `{"fact":"watch","at":"2026-11-21T12:00:00Z","conn":{"state":256}}`, "line 2 of the recording cannot be read: state is not a number of 8 bits: 256"},
		{"a word for an address", head + `{"fact":"watch","at":"2026-11-21T12:00:00Z","conn":{"laddr":"here"}}`, `line 2 of the recording cannot be read: laddr is not an address: "here"`},
		{"a hole in the file", head + `{"fact":"sweep","at":"2026-11-21T12:00:00Z"}` + "\n\x00\x00\x00\n", `line 3 of the recording cannot be read: invalid character '\x00' looking for beginning of value`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := read(strings.NewReader(tt.text))
			if err == nil || !strings.HasSuffix(err.Error(), tt.want) {
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
	// A recording of an older version lacks fields that were added since.
	facts, _, err := read(strings.NewReader(head + `{"fact":"watch","at":"2026-11-21T12:00:00Z","conn":{"cookie":18446744073709551615}}`))
	if err != ErrNoEnd || len(facts) != 1 || facts[0].Conn.Cookie != 1<<64-1 {
		t.Errorf("%d facts, %v", len(facts), err)
	}
}

func sweepAt(i int) *conn.Fact {
	return &conn.Fact{Kind: conn.FactSweep, At: noon.Add(time.Duration(i) * time.Second)}
}

// file is a file in memory whose writes can wait, or fail because it is full.
type file struct {
	bytes.Buffer
	wait   chan struct{}
	full   int // limit in bytes; 0: none
	closed bool
}

func (f *file) Write(p []byte) (int, error) {
	if f.wait != nil {
		<-f.wait
	}
	if f.full > 0 && f.Len()+len(p) > f.full {
		n, _ := f.Buffer.Write(p[:f.full-f.Len()])
		return n, unix.ENOSPC
	}
	return f.Buffer.Write(p)
}

func (f *file) Close() error { f.closed = true; return nil }

func TestRecorder(t *testing.T) {
	for _, tt := range []struct {
		name  string
		file  file
		most  int64
		facts int
		end   error
		log   string // one line
	}{
		{"the recorder is closed", file{}, maxBytes, 5000, io.EOF, ""},
		{"the file reaches its size limit", file{}, 10000, 5000, io.EOF, "the recording has reached the size limit"},
		{"the disk is full", file{full: 100000}, maxBytes, 5000, ErrNoEnd, "no space left on device"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			r, err := start(&tt.file, "x", header(), slog.New(slog.NewTextHandler(&log, nil)), tt.most, maxQueued)
			if err != nil {
				t.Fatal(err)
			}
			for i := range tt.facts {
				r.Record(sweepAt(i))
			}
			r.Close()
			r.Record(sweepAt(0)) // too late
			facts, _, err := read(&tt.file.Buffer)
			if err != tt.end || !tt.file.closed {
				t.Errorf("%v, closed %v", err, tt.file.closed)
			}
			if len(facts) != tt.facts && tt.log == "" || len(facts) >= tt.facts && tt.log != "" || len(facts) == 0 {
				t.Errorf("%d facts", len(facts))
			}
			for i, f := range facts {
				if !f.At.Equal(sweepAt(i).At) {
					t.Fatalf("fact %d is of %v", i, f.At)
				}
			}
			if lines := strings.Count(log.String(), "\n"); !strings.Contains(log.String(), tt.log) || (lines == 1) != (tt.log != "") {
				t.Errorf("log\n%s", &log)
			}
		})
	}
}

func TestRecorderNeverWaits(t *testing.T) {
	// The header is written at once, the facts when the test lets writes go on.
	const room = 2000
	slow := &file{wait: make(chan struct{}, 1)}
	slow.wait <- struct{}{}
	r, err := start(slow, "x", header(), slog.New(slog.DiscardHandler), maxBytes, room)
	if err != nil {
		t.Fatal(err)
	}
	e := &abi.Event{Conn: *conntest.KeepaliveZombie()}
	const n = 5 * room / 2
	for i := range n {
		e.Err = uint16(i)
		r.Record(&conn.Fact{Kind: conn.FactEvent, At: noon, Event: e})
	}
	e.Err = 1 // Record has copied the event, so this must not change the recording
	close(slow.wait)
	r.Close()
	facts, reader, err := read(&slow.Buffer)
	if err != io.EOF || reader.Lost == 0 || uint64(len(facts))+reader.Lost != n {
		t.Fatalf("%d facts, %d lost of %d, %v", len(facts), reader.Lost, n, err)
	}
	for i, f := range facts[:1000] {
		if f.Event.Err != uint16(i) {
			t.Fatalf("event %d is %d", i, f.Event.Err)
		}
	}
}

func TestCreateLeavesOtherFilesAlone(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	recorded := string(recordingOf(t, sweepAt(1)))
	for name, text := range map[string]string{"notes": "notes\n", "empty": "", "target": recorded} {
		if err := os.WriteFile(at(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Mkdir(at("directory"), 0o700), os.Symlink(at("target"), at("link")), os.Symlink(at("nothing"), at("dangling")), unix.Mkfifo(at("pipe"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"notes", "empty", "directory", "link", "dangling", "pipe"} {
		before, _ := os.ReadFile(at("notes"))
		_, err := Create(at(name), header(), slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), at(name)+" exists and is not a recording of halfopen") {
			t.Errorf("%s: %v", name, err)
		}
		if after, _ := os.ReadFile(at("notes")); !bytes.Equal(before, after) {
			t.Errorf("%s was written to", name)
		}
	}
	if text, err := os.ReadFile(at("target")); err != nil || string(text) != recorded {
		t.Error("the target of a link was written to")
	}
}

func TestCreateReplacesRecordings(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	recorded := string(recordingOf(t, sweepAt(1)))
	if err := os.WriteFile(at("older"), []byte(recorded), 0o644); err != nil {
		t.Fatal(err)
	}
	held, err := os.Open(at("older"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	var log bytes.Buffer
	for _, name := range []string{"new", "older"} {
		r, err := Create(at(name), header(), slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		r.Record(sweepAt(2))
		r.Close()
		info, err := os.Stat(at(name))
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: mode %v, error %v", name, info.Mode(), err)
		}
		text, err := os.ReadFile(at(name))
		if err != nil {
			t.Fatal(err)
		}
		if facts, _, err := read(bytes.NewReader(text)); err != io.EOF || len(facts) != 1 || !facts[0].At.Equal(sweepAt(2).At) {
			t.Errorf("%s: %d facts, %v", name, len(facts), err)
		}
	}
	if lines := strings.Count(log.String(), "\n"); lines != 1 || !strings.Contains(log.String(), "replaces an earlier one") {
		t.Errorf("log\n%s", &log)
	}
	if text, _ := io.ReadAll(held); string(text) != recorded {
		t.Error("an open file of the older recording shows the new one")
	}
}

func TestMask(t *testing.T) {
	v4 := func(a, b, c, d byte) [16]uint8 { return [16]uint8{a, b, c, d} }
	connection := func(family uint16, local, remote [16]uint8) *abi.Conn {
		return conntest.With(func(c *abi.Conn) { c.Family, c.Laddr, c.Raddr, c.Lport, c.Rport = family, local, remote, 37024, 5432 })
	}
	mapped := [16]uint8{10: 0xff, 0xff, 192, 168, 3, 4}
	ula, global, link := [16]uint8{0xfd, 0x12, 15: 9}, [16]uint8{0x26, 0x06, 15: 1}, [16]uint8{0xfe, 0x80, 15: 0x42}
	conns := []*abi.Conn{
		connection(2, v4(192, 168, 3, 4), v4(93, 184, 216, 34)),
		connection(2, v4(192, 168, 3, 4), v4(8, 8, 8, 8)),
		connection(2, v4(127, 0, 0, 1), v4(127, 0, 0, 1)),
		connection(2, v4(169, 254, 7, 8), v4(100, 64, 1, 1)),
		connection(10, mapped, mapped),
		connection(10, ula, global),
		connection(10, link, [16]uint8{15: 1}),
		connection(2, v4(0, 0, 0, 0), v4(0, 0, 0, 0)),
		connection(2, v4(8, 8, 8, 8), v4(192, 168, 3, 4)),
	}
	want := [][2]string{
		{"10.128.0.1", "240.0.0.1"},
		{"10.128.0.1", "240.0.0.2"},
		{"127.128.0.1", "127.128.0.1"},
		{"169.254.128.1", "10.128.0.2"},
		{"10.128.0.1", "10.128.0.1"}, // becomes plain IPv4
		{"fd00:db8::1", "2001:db8::1"},
		{"fe80::ffff:0:1", "::1"},
		{"0.0.0.0", "0.0.0.0"},
		{"240.0.0.2", "10.128.0.1"},
	}
	var facts []*conn.Fact
	for _, c := range conns {
		facts = append(facts, &conn.Fact{Kind: conn.FactWatch, At: noon, Conn: c})
	}
	facts = append(facts,
		&conn.Fact{Kind: conn.FactEvent, At: noon, Event: &abi.Event{Conn: *conns[0]}},
		&conn.Fact{Kind: conn.FactCensus, At: noon, Census: &conn.Census{Began: noon, Counts: new(abi.CensusCounts), Troubled: []conn.Observation{{Conn: *conns[0], At: noon}},
			Hosts: map[conn.HostKey]conn.HostCount{{Netns: 1, Addr: netip.MustParseAddr("93.184.216.34")}: {Connections: 3, Exposed: 2, HeardAt: noon}}}})
	whose := func(comm, path string) conn.Ownership {
		return conn.Ownership{Process: &conn.Process{PID: 812, Comm: comm, FD: 9}, Cgroup: conn.ParseCgroup(path)}
	}
	const container, pod = "3f2a9c8d7e6f0123456789abcdef0123456789abcdef0123456789abcdef0123", "5b3a8f0e-1111-2222-3333-444444444444"
	facts = append(facts, &conn.Fact{Kind: conn.FactObstacles, At: noon, Obstacles: map[uint64]*conn.Reason{
		1: {Code: conn.ReasonNoRoute, Detail: "There is no route to 203.0.113.7 on payroll0."},
	}}, &conn.Fact{Kind: conn.FactOwners, At: noon, Owners: map[uint64]conn.Ownership{
		1: whose("payroll", "/system.slice/payroll.service"),
		2: whose("payroll", "/user.slice/payroll.scope"),
		3: whose("java", "/kubepods.slice/kubepods-pod"+strings.ReplaceAll(pod, "-", "_")+".slice/cri-containerd-"+container+".scope"),
		4: whose("payroll", "/"),
		5: {},
		6: {Cgroup: conn.Cgroup{Path: "/x", ContainerID: container, PodUID: pod, Namespace: "shop", Pod: "checkout-xhnvf", Container: "server"}},
		7: {Cgroup: conn.Cgroup{Path: "/x", ContainerID: container, PodUID: pod, Namespace: "shop", Pod: "checkout-abcde", Container: "server"}},
	}})
	text := recordingOf(t, facts...)
	var out bytes.Buffer
	if n, err := Mask(&out, bytes.NewReader(text)); err != nil || n != len(facts) {
		t.Fatalf("%d facts, %v", n, err)
	}
	for _, secret := range []string{"192.168", "93.184", "8.8.8.8", "127.0.0.1", "169.254.7", "100.64", "fd12", "2606", "fe80::42", "203.0.113", "payroll", "java", "slice", container[:12], pod[:8]} {
		if !bytes.Contains(text, []byte(secret)) && secret != "8.8.8.8" {
			t.Fatalf("the test has no %s to mask\n%s", secret, text)
		}
		if bytes.Contains(out.Bytes(), []byte(secret)) {
			t.Errorf("%s is left in\n%s", secret, &out)
		}
	}
	got, r, err := read(bytes.NewReader(out.Bytes()))
	if err != io.EOF || !r.Header.Masked || len(got) != len(facts) {
		t.Fatalf("%d facts, %v, masked %v", len(got), err, r.Header.Masked)
	}
	check := func(c *abi.Conn, want [2]string, as *abi.Conn) {
		t.Helper()
		if got := [2]string{c.Local().Addr().String(), c.Remote().Addr().String()}; got != want {
			t.Errorf("%v, want %v", got, want)
		}
		unmasked := *c
		unmasked.Laddr, unmasked.Raddr = as.Laddr, as.Raddr
		if unmasked != *as {
			t.Errorf("a record differs in more than its addresses: %+v, want %+v", unmasked, *as)
		}
	}
	for i, c := range conns {
		check(got[i].Conn, want[i], c)
	}
	check(&got[len(conns)].Event.Conn, want[0], conns[0])
	check(&got[len(conns)+1].Census.Troubled[0].Conn, want[0], conns[0])
	wantHosts := map[conn.HostKey]conn.HostCount{{Netns: 1, Addr: netip.MustParseAddr(want[0][1])}: {Connections: 3, Exposed: 2, HeardAt: noon}}
	if d := cmp.Diff(wantHosts, got[len(conns)+1].Census.Hosts, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("hosts (-want +got)\n%s", d)
	}
	owners := got[len(got)-1].Owners
	wantOwners := map[uint64]conn.Ownership{
		1: {Process: &conn.Process{PID: 812, Comm: "process-1", FD: 9}, Cgroup: conn.Cgroup{Path: "/group-1", Unit: "unit-1.service"}},
		2: {Process: &conn.Process{PID: 812, Comm: "process-1", FD: 9}, Cgroup: conn.Cgroup{Path: "/group-2", Unit: "unit-2.scope"}},
		3: {
			Process: &conn.Process{PID: 812, Comm: "process-2", FD: 9},
			Cgroup:  conn.Cgroup{Path: "/group-3", ContainerID: fmt.Sprintf("%064x", 1), PodUID: "00000000-0000-0000-0000-000000000001"},
		},
		4: {Process: &conn.Process{PID: 812, Comm: "process-1", FD: 9}, Cgroup: conn.Cgroup{Path: "/"}},
		5: {},
		6: {Cgroup: conn.Cgroup{
			Path: "/group-4", ContainerID: fmt.Sprintf("%064x", 1), PodUID: "00000000-0000-0000-0000-000000000001",
			Namespace: "namespace-1", Pod: "pod-1", Container: "container-1",
		}},
		7: {Cgroup: conn.Cgroup{
			Path: "/group-4", ContainerID: fmt.Sprintf("%064x", 1), PodUID: "00000000-0000-0000-0000-000000000001",
			Namespace: "namespace-1", Pod: "pod-2", Container: "container-1",
		}},
	}
	if d := cmp.Diff(wantOwners, owners); d != "" {
		t.Errorf("owners (-want +got)\n%s", d)
	}
	// A recording without an end has no end after masking.
	out.Reset()
	if n, err := Mask(&out, bytes.NewReader(text[:len(text)-30])); !errors.Is(err, ErrNoEnd) || n != len(facts) {
		t.Errorf("%d facts, %v", n, err)
	}
	if got, _, err := read(&out); err != ErrNoEnd || len(got) != len(facts) {
		t.Errorf("%d facts, %v", len(got), err)
	}
}

// FuzzReader reads, replays and masks files from untrusted sources. None may crash the
// program, and the facts that could be read are written again unchanged.
func FuzzReader(f *testing.F) {
	var seeds []*conn.Fact
	for i, c := range conntest.Seeds() {
		c.Family, c.Laddr = 2, [16]uint8{10, 0, 0, byte(i)}
		seeds = append(seeds,
			&conn.Fact{Kind: conn.FactEvent, At: noon, Event: &abi.Event{Type: uint8(i % 2), Cause: uint8(i), Conn: *c}},
			&conn.Fact{Kind: conn.FactWatch, At: noon, Conn: c}, sweepAt(i),
			&conn.Fact{Kind: conn.FactCensus, At: noon, Census: &conn.Census{Began: noon, Counts: new(abi.CensusCounts), Troubled: []conn.Observation{{Conn: *c, At: noon}}, Unwalked: []uint32{1}}},
			&conn.Fact{Kind: conn.FactOwners, At: noon, Owners: map[uint64]conn.Ownership{c.Cookie: {Process: &conn.Process{Comm: "x"}}}})
	}
	f.Add(recordingOf(f, seeds[:10]...))
	for _, s := range seeds {
		f.Add(recordingOf(f, s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := NewReader(bytes.NewReader(data))
		if err != nil {
			return
		}
		tracker := conn.NewTracker(r.Header.Rules.Conn(), nil)
		var facts []*conn.Fact
		for {
			fact, err := r.Next()
			if err != nil {
				break
			}
			facts = append(facts, fact)
		}
		again := recordingOf(t, facts...)
		reread, _, err := read(bytes.NewReader(again))
		if err != io.EOF {
			t.Fatalf("the facts, written again, cannot be read: %v\n%s", err, again)
		}
		if thrice := recordingOf(t, reread...); !bytes.Equal(again, thrice) {
			t.Fatalf("%s\nread and written once more is\n%s", again, thrice)
		}
		for _, fact := range facts {
			tracker.Apply(fact)
		}
		tracker.Stats(noon)
		n, err := Mask(io.Discard, bytes.NewReader(data))
		if err == nil && n != len(facts) {
			t.Fatalf("%d facts, %d are masked", len(facts), n)
		}
	})
}
