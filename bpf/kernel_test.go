// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf/abi"
)

// hiccups returns EAGAIN and EINTR between records, as a BPF iterator may.
type hiccups struct {
	r io.Reader
	n int
}

func (h *hiccups) Read(p []byte) (int, error) {
	h.n++
	switch h.n % 3 {
	case 1:
		return 0, unix.EAGAIN
	case 2:
		return -1, unix.EINTR // os.File does so too
	}
	return h.r.Read(p)
}

func FuzzReadRecords(f *testing.F) {
	f.Add(uint16(23), uint8(0))
	f.Add(uint16(2731), uint8(1))
	f.Add(uint16(1), uint8(31))
	f.Fuzz(func(t *testing.T, count uint16, cut uint8) {
		var stream bytes.Buffer
		for i := range count {
			o := abi.FDHolder{Cookie: uint64(i) + 1, PID: uint32(i)}
			stream.Write(bytesOf(&o))
		}
		const size = int(unsafe.Sizeof(abi.FDHolder{}))
		stream.Truncate(max(0, stream.Len()-int(cut)%size))
		whole, rest := stream.Len()/size, stream.Len()%size
		for name, r := range map[string]io.Reader{
			"whole":      bytes.NewReader(stream.Bytes()),
			"bytewise":   iotest.OneByteReader(bytes.NewReader(stream.Bytes())),
			"halves":     iotest.HalfReader(bytes.NewReader(stream.Bytes())),
			"end early":  iotest.DataErrReader(bytes.NewReader(stream.Bytes())),
			"hiccupping": &hiccups{r: bytes.NewReader(stream.Bytes())},
		} {
			var o abi.FDHolder
			got := 0
			err := readRecords(r, bytesOf(&o), func() {
				got++
				if o.Cookie != uint64(got) || o.PID != uint32(got-1) {
					t.Fatalf("%s: record %d is %+v", name, got, o)
				}
			})
			if got != whole {
				t.Errorf("%s: %d records, expected %d", name, got, whole)
			}
			if torn := errors.Is(err, io.ErrUnexpectedEOF); torn != (rest > 0) || err != nil && !torn {
				t.Errorf("%s: %d bytes too many, error %v", name, rest, err)
			}
		}
	})
}

func TestReadRecordsFails(t *testing.T) {
	if err := readRecords(iotest.ErrReader(os.ErrPermission), nil, nil); !errors.Is(err, os.ErrPermission) {
		t.Errorf("error is %v", err)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: sudo make test")
	}
}

// load loads the programs, which takes root.
func load(t *testing.T, opts Options) *Kernel {
	t.Helper()
	needRoot(t)
	k, err := Load(opts)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// pair makes a TCP connection of this process with itself.
func pair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func cookieOf(t *testing.T, c syscall.Conn) (cookie uint64, fd uint32) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(f uintptr) {
		fd = uint32(f)
		cookie, err = unix.GetsockoptUint64(int(f), unix.SOL_SOCKET, unix.SO_COOKIE)
	}); errors.Join(cerr, err) != nil {
		t.Fatal(cerr, err)
	}
	return cookie, fd
}

func TestWhatAConnectionLooksLike(t *testing.T) {
	k := load(t, Options{UnreadAfter: 100 * time.Millisecond})
	client, server := pair(t)
	cookie, fd := cookieOf(t, client)
	var found []abi.Conn
	if _, err := k.Find(context.Background(), cookie, func(c *abi.Conn) { found = append(found, *c) }); err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 {
		t.Fatalf("%d connections have cookie %x", len(found), cookie)
	}
	c := &found[0]
	if c.Local().String() != client.LocalAddr().String() || c.Remote().String() != client.RemoteAddr().String() {
		t.Errorf("%v to %v, expected %v to %v", c.Local(), c.Remote(), client.LocalAddr(), client.RemoteAddr())
	}
	if c.State != abi.StateEstablished || c.Class != abi.ClassActive || c.Flags&(abi.ConnTrouble|abi.ConnOrphan|abi.ConnUnaccepted) != 0 {
		t.Errorf("state %d, class %d, flags %#x", c.State, c.Class, c.Flags)
	}
	// Go sets 15 s on every connection; in jiffies, this shows that HZ is right.
	if got := time.Duration(c.KeepaliveIntvl) * time.Second / time.Duration(k.HZ()); got != 15*time.Second || c.Flags&abi.ConnKeepaliveIntvlSet == 0 {
		t.Errorf("keepalive interval is %v", got)
	}

	// Of these two, of more than the map of cookies has room for, and of all sockets.
	many := []uint64{cookie}
	for i := range k.objs.Wanted.MaxEntries() {
		many = append(many, 1<<63+uint64(i))
	}
	for name, cookies := range map[string][]uint64{"two": {cookie, 1<<63 + 1}, "many": many, "all": nil} {
		owners := make(map[uint64][]abi.FDHolder)
		if err := k.FDHolders(cookies, func(o *abi.FDHolder) { owners[o.Cookie] = append(owners[o.Cookie], *o) }); err != nil {
			t.Fatal(err)
		}
		got := owners[cookie]
		if len(got) != 1 || got[0].PID != uint32(os.Getpid()) || got[0].FD != fd || cookies != nil && len(owners) != 1 {
			t.Errorf("owners of %s are %+v, expected pid %d with descriptor %d", name, owners, os.Getpid(), fd)
		}
	}
	var left uint64
	if err := k.objs.Wanted.NextKey(nil, &left); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("cookie %#x is still asked for: %v", left, err)
	}
	checkUnread(t, k, client, server)
}

// checkUnread leaves data that the server sends, although it goes on sending, then a part of it,
// and at last reads it all, and checks what the programs say of the client's end.
func checkUnread(t *testing.T, k *Kernel, client, server *net.TCPConn) {
	t.Helper()
	cookie, _ := cookieOf(t, client)
	look := func() (c abi.Conn) {
		t.Helper()
		if _, err := k.Find(t.Context(), cookie, func(found *abi.Conn) { c = *found }); err != nil || c.Cookie != cookie {
			t.Fatalf("connection %x is not found: %v", cookie, err)
		}
		return c
	}
	expect := func(when string, bytes uint32, unread bool, ages ...uint32) {
		t.Helper()
		if c := look(); c.ReceiveQueue != bytes || c.Flags&abi.ConnUnread != 0 != unread || len(ages) > 0 && !slices.Contains(ages, c.Unread) {
			t.Errorf("%s: %d of %d bytes, unread %d, flags %#x", when, c.ReceiveQueue, bytes, c.Unread, c.Flags)
		}
	}
	readOn := func(bytes uint32) {
		t.Helper()
		if _, err := io.ReadFull(client, make([]byte, bytes)); err != nil {
			t.Fatal(err)
		}
	}
	expect("without data", 0, false, abi.AgeNone)
	sent := leave(t, server, look)
	expect("data is left", sent, true)
	expectReadAgain(t, k, "while data is left", cookie, 0)
	readOn(6)
	expect("a part is read", sent-6, false, 0)
	readOn(sent - 6)
	expectReadAgain(t, k, "all is read", cookie, 1)
	expectReadAgain(t, k, "after that", cookie, 0)
	if err := server.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for late := time.Now().Add(time.Minute); look().State != abi.StateCloseWait; {
		if time.Now().After(late) {
			t.Fatal("the FIN did not come")
		}
	}
	time.Sleep(150 * time.Millisecond) // longer than UnreadAfter
	expect("a FIN alone", 0, false)
}

// leave has the server send until the client's end, which look returns, is unread. It returns
// how many bytes it has sent.
func leave(t *testing.T, server *net.TCPConn, look func() abi.Conn) (sent uint32) {
	t.Helper()
	for late := time.Now().Add(time.Minute); ; {
		if _, err := server.Write([]byte("unread")); err != nil || time.Now().After(late) {
			t.Fatalf("it is never unread: %+v, error %v", look(), err)
		}
		sent += 6
		if look().Flags&abi.ConnUnread != 0 {
			return sent
		}
		time.Sleep(20 * time.Millisecond) // a peer that sends all the time hides nothing
	}
}

// expectReadAgain expects so many records of a connection, whose application has read again.
func expectReadAgain(t *testing.T, k *Kernel, when string, cookie uint64, want int) {
	t.Helper()
	got := 0
	if err := k.ReadAgain(func(c *abi.Conn) {
		if c.Cookie == cookie {
			got++
		}
	}); err != nil || got != want {
		t.Errorf("%s: it is read again %d times, want %d, error %v", when, got, want, err)
	}
}

// setStatePrograms counts the programs that give cookies to sockets, including those of
// other agents on this machine.
func setStatePrograms(t *testing.T) (n int) {
	t.Helper()
	for id := ebpf.ProgramID(0); ; {
		var err error
		if id, err = ebpf.ProgramGetNextID(id); errors.Is(err, os.ErrNotExist) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone
		}
		if info, err := p.Info(); err == nil && strings.HasPrefix(info.Name, "inet_sock_set_") {
			n++
		}
		p.Close()
	}
}

// The programs do as they do before Linux 5.12, on any kernel.
func TestCookiesThatOurProgramsCannotGive(t *testing.T) {
	needRoot(t)
	ino, ns, socket := newNetns(t)
	defer unix.Close(ns)
	defer unix.Close(socket)
	pairThere := func() (client *net.TCPConn) {
		t.Helper()
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(home)
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo"}}); err != nil {
			t.Fatal(err)
		}
		client, _ = pair(t)
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			t.Fatal(err)
		}
		runtime.UnlockOSThread()
		return client
	}
	strangers := setStatePrograms(t)
	older := pairThere()
	k := load(t, Options{Observe: true, noCookieHelper: true})
	if err := k.CookiesErr(); err != nil {
		t.Error(err)
	}
	noCookie, err := k.findNoCookie(t.Context(), 0)
	if strangers += setStatePrograms(t) - 2; strangers > 0 {
		t.Log("another agent is at work, and may have given them cookies")
	} else if err != nil || noCookie[uint32(ino)] == 0 {
		t.Errorf("there are sockets without a cookie in %v, error %v; expected %d", noCookie, err, ino)
	}
	found := make(map[uint64]int)
	res, err := k.Census(context.Background(), Select(abi.ClassActive, abi.ClassNone), func(c *abi.Conn) {
		if uint64(c.Netns) == ino {
			found[c.Cookie]++
		}
	})
	if err = errors.Join(err, res.Err); err != nil {
		t.Fatal(err)
	}
	if cookie, _ := cookieOf(t, older); len(found) != 2 || found[cookie] != 1 {
		t.Errorf("found %v, expected two ends, one of them %x", found, cookie)
	}
	younger := pairThere()
	if noCookie, err := k.findNoCookie(t.Context(), 0); err != nil || noCookie[uint32(ino)] != 0 {
		t.Errorf("a connection begins without a cookie, error %v", err)
	}
	if cookie, _ := cookieOf(t, younger); found[cookie] != 0 {
		t.Errorf("two connections have the cookie %x", cookie)
	}
}

// A census writes out a connection that has been idle for as long as the selection says,
// and counts all.
func TestSelectionByIdleTime(t *testing.T) {
	k := load(t, Options{})
	_, server := pair(t)
	cookie, _ := cookieOf(t, server)
	for _, tt := range []struct {
		idle time.Duration
		want bool
	}{{0, true}, {time.Hour, false}} {
		selection := Select(abi.ClassActive)
		selection.Idle[abi.ClassActive] = tt.idle
		found := false
		res, err := k.Census(t.Context(), selection, func(c *abi.Conn) { found = found || c.Cookie == cookie })
		if err != nil {
			t.Fatal(err)
		}
		if found != tt.want || res.Connections() < 2 {
			t.Errorf("idle for at least %v: found %v, of %d connections", tt.idle, found, res.Connections())
		}
	}
}

func TestFlushDeliversAndReturns(t *testing.T) {
	k := load(t, Options{Observe: true})
	client, server := pair(t)
	cookie, _ := cookieOf(t, server)
	// A reset ends the connection at the other end, which is not orderly.
	if err := client.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	client.Close()
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("the other end got %v", err)
	}
	if err := k.Flush(); err != nil {
		t.Fatal(err)
	}
	var causes []uint8
	for {
		var e abi.Event
		err := k.ReadEvent(&e)
		if errors.Is(err, ErrFlushed) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.Type == abi.EventDeath && e.Conn.Cookie == cookie {
			causes = append(causes, e.Cause)
		}
	}
	if !slices.Equal(causes, []uint8{abi.CauseResetByPeer}) {
		t.Errorf("causes of the death are %v", causes)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if err := k.ReadEvent(new(abi.Event)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestTracepointsAreThoseAttached(t *testing.T) {
	k := load(t, Options{Observe: true})
	names, err := Tracepoints()
	if err != nil {
		t.Fatal(err)
	}
	attached := k.Attached()
	if len(attached) != len(names) {
		t.Errorf("%v are attached, of %v", attached, names)
	}
	for _, name := range names {
		if !attached[name] {
			t.Errorf("%s is not attached", name)
		}
	}
}

func TestJiffies(t *testing.T) {
	k := &Kernel{hz: 1000}
	for d, want := range map[time.Duration]uint32{
		time.Second: 1000, time.Microsecond: 1, 0: 1, 200 * 365 * 24 * time.Hour: abi.AgeNone - 1,
	} {
		if got := k.jiffies(d); got != want {
			t.Errorf("%v is %d jiffies, expected %d", d, got, want)
		}
	}
}

// newNetns makes a network namespace and leaves it again: only the descriptors that it
// returns keep it, one of the namespace and one of a socket in it.
func newNetns(t *testing.T) (ino uint64, ns, socket int) {
	t.Helper()
	var err error
	onSpareThread(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		if ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return
		}
		socket, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino, ns, socket
}

func TestNamespacesAreFound(t *testing.T) {
	k := load(t, Options{})
	find := func() map[uint64]netnsRef {
		t.Helper()
		k.fdOnlyDue = time.Time{}
		refs, err := k.namespaces()
		if err != nil {
			t.Fatal(err)
		}
		return refs
	}
	enters := func(ref netnsRef, ino uint64) (err error) {
		onSpareThread(func() { err = ref.enter(ino) })
		return err
	}
	var own unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &own); err != nil {
		t.Fatal(err)
	}
	if _, ok := find()[own.Ino]; !ok {
		t.Error("our own is not found")
	}
	byFile, file, socket := newNetns(t)
	unix.Close(socket)
	bySocket, ns, socket := newNetns(t)
	defer unix.Close(socket)
	unix.Close(ns)

	// The threads that made the namespaces may take a moment to end.
	var refs map[uint64]netnsRef
	for end := time.Now().Add(5 * time.Second); ; {
		refs = find()
		f, s := refs[byFile].holder.Kind, refs[bySocket].holder.Kind
		if f == abi.HolderFile && s == abi.HolderSocket {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("found by a descriptor of its own: %+v, by one of a socket: %+v", refs[byFile], refs[bySocket])
		}
	}
	for _, ino := range []uint64{byFile, bySocket} {
		if err := enters(refs[ino], ino); err != nil {
			t.Errorf("enter by %+v: %v", refs[ino], err)
		}
	}
	unix.Close(file)
	if err := enters(refs[byFile], byFile); !gone(err) {
		t.Errorf("enter a namespace that is gone: %v", err)
	}
	// Threads that have entered it may take a moment to end, too.
	for end := time.Now().Add(5 * time.Second); ; {
		w, ok := find()[byFile]
		if !ok {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("a namespace that is gone is found: %+v", w)
		}
	}
}

// A process that held a namespace by a descriptor can replace the descriptor before the
// agent opens it: by a file that only root may read and whose opening has an effect, or
// by a terminal, which would become root's controlling terminal.
func TestWhatAProcessPutsInPlaceOfANamespaceIsNotOpened(t *testing.T) {
	k := load(t, Options{})
	ino, ns, socket := newNetns(t)
	unix.Close(socket)
	defer unix.Close(ns)
	var ref netnsRef
	for end := time.Now().Add(5 * time.Second); ; {
		k.fdOnlyDue = time.Time{}
		refs, err := k.namespaces()
		if err != nil {
			t.Fatal(err)
		}
		if ref = refs[ino]; ref.holder.Kind == abi.HolderFile {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it is not found by its descriptor: %+v", ref)
		}
	}
	secret := t.TempDir() + "/secret"
	if err := os.WriteFile(secret, []byte("root's"), 0o600); err != nil {
		t.Fatal(err)
	}
	ptmx, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ptmx)
	number, err := unix.IoctlGetInt(ptmx, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(ptmx, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{secret, "/dev/pts/" + strconv.Itoa(number)} {
		// A process that may not read a file can still have a descriptor of it.
		bait, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.InotifyAddWatch(watch, path, unix.IN_OPEN); err != nil {
			t.Fatal(err)
		}
		if err := unix.Dup3(bait, int(ref.holder.FD), unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		fd, err := ref.open()
		if err == nil {
			unix.Close(fd)
		}
		if !gone(err) {
			t.Errorf("%s in place of a namespace: error %v", path, err)
		}
		if n, err := unix.Read(watch, make([]byte, 4096)); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("%s was opened (%d bytes of events, error %v)", path, n, err)
		}
		unix.Close(bait)
		unix.Close(watch)
	}
}

// Each CPU keeps entries of an LRU map free for itself. If the map has no more than
// these, every insertion evicts an entry.
func TestLRUMapsHaveRoomForAllCPUs(t *testing.T) {
	for _, cpus := range []int{1, 2, 32, 512} {
		spec, err := readObject(nil)
		if err != nil {
			t.Fatal(err)
		}
		before := make(map[string]uint32)
		for name, m := range spec.Maps {
			before[name] = m.MaxEntries
		}
		sizeLRU(spec, cpus)
		n := 0
		for name, m := range spec.Maps {
			if m.Type != ebpf.LRUHash {
				if m.MaxEntries != before[name] {
					t.Errorf("%s, which is not an LRU map, has %d entries, not %d", name, m.MaxEntries, before[name])
				}
				continue
			}
			n++
			if m.MaxEntries < before[name] || m.MaxEntries < uint32(2*lruLocal*cpus) {
				t.Errorf("%d CPUs keep %d entries of %s free, which has %d", cpus, lruLocal*cpus, name, m.MaxEntries)
			}
		}
		if n == 0 {
			t.Fatal("there is no LRU map")
		}
	}
}

// listenersOfOnePort makes that many listeners which the kernel keeps in one chain. None
// has a cookie.
func listenersOfOnePort(t *testing.T, n int) (fds []int) {
	t.Helper()
	t.Cleanup(func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	})
	addr := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
		if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1), unix.Bind(fd, addr), unix.Listen(fd, 1)); err != nil {
			t.Fatal(err)
		}
		if addr.Port == 0 {
			sa, err := unix.Getsockname(fd)
			if err != nil {
				t.Fatal(err)
			}
			addr = sa.(*unix.SockaddrInet4)
		}
	}
	return fds
}

// The walk continues in the middle of a chain of any length, whether or not its sockets
// have cookies, and also if the socket where it stopped is gone.
func TestLongChainsAreWalkedToTheEnd(t *testing.T) {
	const many = 3000 // more than the steps of a run
	fds := listenersOfOnePort(t, many)
	k := load(t, Options{noCookieHelper: true})
	walk := func(between func()) (listeners int) {
		t.Helper()
		k.census.Lock()
		defer k.census.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var counts abi.CensusCounts
		stop := func() bool {
			between()
			return false
		}
		if _, done, err := k.walk(ctx, &censusRequest{selection: Select()}, abi.OwnTable{}, abi.Cursor{}, &counts, stop); err != nil || !done {
			t.Fatalf("the walk ends early: %v", err)
		}
		return int(counts.Sockets[abi.StateListen][abi.ClassNone])
	}
	all := walk(func() {})
	if all < many {
		t.Errorf("%d listeners are counted, there are at least %d", all, many)
	}
	closed := 0
	got := walk(func() {
		var at abi.Cursor
		if err := k.objs.WalkAt.Get(&at); err != nil || at.Passed < uint32(len(k.walkBatch.Socket)) {
			return // not in the chain of these listeners
		}
		// Close one in ten, so that this includes the current one of the walk sometimes.
		for range len(fds) / 10 {
			i := rand.IntN(len(fds))
			unix.Close(fds[i])
			fds = slices.Delete(fds, i, i+1)
			closed++
		}
	})
	if closed == 0 {
		t.Error("nothing was closed")
	}
	if got < all-closed || got > all {
		t.Errorf("%d listeners are counted while %d of %d close", got, closed, all)
	}
	t.Logf("%d listeners, then %d while %d were closed", all, got, closed)
}

// While visit is called, other censuses run to their end, and the walk goes on afterwards
// where it was.
func TestOtherCensusesRunWhileASocketIsVisited(t *testing.T) {
	const many = 1000 // several runs of the walk
	sa, err := unix.Getsockname(listenersOfOnePort(t, many)[0])
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(sa.(*unix.SockaddrInet4).Port)
	k := load(t, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// Others on this machine have listeners, too.
	counts := func(what string, res CensusResult, err error) {
		t.Helper()
		if n := res.Counts.Sockets[abi.StateListen][abi.ClassNone]; err != nil || n < many || n > 2*many {
			t.Errorf("%s counts %d listeners, error %v", what, n, err)
		}
	}
	others, seen := 0, make(map[uint64]bool)
	res, err := k.Census(ctx, Select(abi.ClassNone), func(c *abi.Conn) {
		if c.State != abi.StateListen || c.Lport != port {
			return
		}
		seen[c.Cookie] = true
		if len(seen)%300 != 1 {
			return
		}
		others++
		res, err := k.Census(ctx, Select(), nil)
		counts("another census", res, err)
		res, err = k.PeriodicCensus(ctx, Select(), nil, time.Second, nil)
		counts("a periodic census", res, err)
	})
	counts("the census", res, err)
	if len(seen) != many || others < many/300 {
		t.Errorf("%d of %d listeners are visited, with %d other censuses meanwhile", len(seen), many, others)
	}
}

// Where a program has a stack of its own, a continuation that interrupts itself would write over it.
func TestFallbackHasContinuationsOfItsOwn(t *testing.T) {
	k := load(t, Options{Observe: true})
	kernel, err := kernelTypes(btf.NewCache())
	if err != nil {
		t.Fatal(err)
	}
	apart := privateStacks.isFirst(kernel)
	for name, place := range map[string]*ebpf.Map{
		"on_death": k.objs.OnDeath, "on_retransmission": k.objs.OnRetransmission, "on_reset": k.objs.OnReset,
	} {
		var primary, fallback uint32 // identities of programs
		if err := errors.Join(place.Lookup(uint32(0), &primary), place.Lookup(uint32(1), &fallback)); err != nil {
			t.Fatal(err)
		}
		if primary == 0 || (primary != fallback) != apart {
			t.Errorf("%s: program %d of the primary and %d of the fallback; expected two programs: %v", name, primary, fallback, apart)
		}
	}
}
