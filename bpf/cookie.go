// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf/abi"
)

// A socket has no cookie until something asks for one. Since Linux 5.12 tracing programs
// can: the one of inet_sock_set_state does when a connection begins, and an iterator over
// all descriptors does for older sockets. Before, a cgroup program does it for new
// connections. Sockets that remain get their cookies from sock_diag, in their network
// namespaces. None of these takes a socket's lock, since a process may hold that lock for
// any length of time.

// CookiesErr returns the reason why new connections get no cookie until the next census,
// which means that their solicitations are not observed before; nil if they do get one.
func (k *Kernel) CookiesErr() error { return k.cookiesErr }

// cookieGiver is a program for the root cgroup that gives a cookie to every TCP socket
// that connects or that a listener accepts. It can be attached without privileges.
type cookieGiver struct {
	program *ebpf.Program
	root    *os.File // the directory of the root cgroup
}

// newCookieGiver loads the program.
func newCookieGiver() (*cookieGiver, error) {
	const initial = 0xeffffffb // PROC_CGROUP_INIT_INO, include/linux/proc_ns.h
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/cgroup", &ns); err == nil && ns.Ino != initial {
		return nil, errors.New("in a cgroup namespace of our own there is no root of all cgroups: use the host's")
	}
	// This mount is in no mount namespace: the hierarchy may not be mounted anywhere.
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open cgroup2: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("open cgroup2: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount cgroup2: %w", err)
	}
	g := &cookieGiver{root: os.NewFile(uintptr(root), "the root cgroup")}
	if g.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SockOps, AttachType: ebpf.AttachCGroupSockOps, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.FnGetSocketCookie.Call(),
			asm.Mov.Imm(asm.R0, 1), // do not change anything else
			asm.Return(),
		},
	}); err != nil {
		g.root.Close()
		return nil, fmt.Errorf("load: %w", err)
	}
	return g, nil
}

// attach attaches the program until the link is closed.
func (g *cookieGiver) attach() (link.Link, error) {
	l, err := link.AttachCgroup(link.CgroupOptions{
		Path: fmt.Sprintf("/proc/self/fd/%d", g.root.Fd()), Attach: ebpf.AttachCGroupSockOps, Program: g.program,
	})
	if err != nil {
		return nil, fmt.Errorf("attach to the root cgroup: %w", err)
	}
	return l, nil
}

// Close unloads the program once it is not attached. It does nothing if g is nil.
func (g *cookieGiver) Close() error {
	if g == nil {
		return nil
	}
	return errors.Join(g.program.Close(), g.root.Close())
}

const (
	// cookiesInterval is the least time between two searches for sockets without a
	// cookie, and cookiesShare the share of one CPU that these searches may take.
	cookiesInterval = 30 * time.Second
	cookiesShare    = 0.005
	// A census waits for a search this long: for the first one, which finds all sockets
	// that are older than the agent, and for a later one.
	firstCookiesWait = 10 * time.Second
	laterCookiesWait = time.Second
	// A search that takes longer is reported as hanging.
	cookiesHang = time.Minute
)

// cookieSearch is the state of the search for sockets without a cookie.
type cookieSearch struct {
	sync.Mutex
	succeeded bool          // one search has
	running   chan struct{} // closed when the current search ends; nil if there is none. It may hang, since it opens files that users choose
	began     time.Time     // the current search
	cpu       time.Duration // CPU time of the last search
	due       time.Time     // the next search
	noCookie  bool          // the last census found connections without a cookie
	// failed has the namespaces in which the last search could not give cookies, and
	// the reason. err is the reason why it did not get to all namespaces.
	failed map[uint32]error
	err    error
}

// CookieSearchHangs returns the time when the current search for sockets without a
// cookie began, if it has been running for more than a minute; otherwise the zero time.
func (k *Kernel) CookieSearchHangs() time.Time {
	s := &k.cookies
	s.Lock()
	defer s.Unlock()
	if s.running != nil && time.Since(s.began) > cookiesHang {
		return s.began
	}
	return time.Time{}
}

// complete fills in Unvisited, Refused, Hidden and Err of a census. noCookie has the
// namespaces in which it found sockets without a cookie, and the bits of their states.
func (s *cookieSearch) complete(res *CensusResult, noCookie map[uint32]uint32) {
	s.Lock()
	defer s.Unlock()
	s.noCookie = false
	for netns, states := range noCookie {
		if states&^stubStates == 0 {
			// A list of all sockets has found them, or a periodic census a listener
			// that has dropped something.
			s.noCookie = s.noCookie || states&listenBit != 0
			continue
		}
		s.noCookie = true
		switch err, failed := s.failed[netns]; {
		case !failed && s.err != nil:
			res.Unvisited++
			res.Err = fmt.Errorf("search for sockets without a cookie: %w", s.err)
		case !failed: // they are new, and the next search finds them
		case gone(err):
			res.Unvisited++
		case errors.Is(err, errHidden):
			res.Unvisited++
			res.Hidden++
		default:
			res.Unvisited++
			res.Err = fmt.Errorf("network namespace %d: %w", netns, err)
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
				res.Refused++
			}
		}
	}
}

// assignCookies gives cookies to the sockets that have none, if there may be any, before
// a census that writes out these classes. It returns the CPU time that this took.
// The search opens files of other processes, and may hang: assignCookies does not wait
// for long, and begins no other search until this one has ended.
func (k *Kernel) assignCookies(ctx context.Context, classes Classes) time.Duration {
	s := &k.cookies
	stubs := classes&ClassesOf(abi.ClassNone) != 0
	s.Lock()
	if s.succeeded && !stubs && (!s.noCookie || time.Now().Before(s.due)) {
		s.Unlock()
		return 0
	}
	wait := laterCookiesWait
	if !s.succeeded {
		wait = firstCookiesWait
	}
	running := s.running
	if running == nil {
		running = make(chan struct{})
		s.running, s.began = running, time.Now()
		go k.searchNoCookie(classes, running)
	}
	s.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-running:
		s.Lock()
		defer s.Unlock()
		return s.cpu
	case <-timer.C:
	case <-ctx.Done():
	}
	return 0
}

// searchNoCookie runs one search, and then closes done.
func (k *Kernel) searchNoCookie(classes Classes, done chan struct{}) {
	runtime.LockOSThread() // threadCPU is the time of one thread
	defer runtime.UnlockOSThread()
	defer close(done)
	began := threadCPU()
	failed, elsewhere, err := k.giveMissingCookies(k.ctx, classes)
	cpu := threadCPU() - began + elsewhere
	s := &k.cookies
	s.Lock()
	defer s.Unlock()
	s.failed, s.err, s.cpu = failed, err, cpu
	s.running, s.succeeded = nil, s.succeeded || err == nil
	s.due = time.Now().Add(max(cookiesInterval, time.Duration(float64(cpu)/cookiesShare)))
}

// onSpareThread runs f on a thread of its own, which ends afterwards, and waits for it.
// It never uses the first thread of the process: that one would not end, and stay in the
// network namespace that f has entered.
func onSpareThread(f func()) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread() // without unlocking it, so that the thread ends
		if unix.Gettid() == unix.Getpid() {
			onSpareThread(f) // while this goroutine has the first thread, no other can
			runtime.UnlockOSThread()
		} else {
			f()
		}
		close(done)
	}()
	<-done
}

// giveMissingCookies gives a cookie to each socket that has none: first, by one pass over
// all descriptors, to those that a process holds; then, by sock_diag in their namespaces,
// to the others. It returns the namespaces where this failed, and the reason, and the CPU
// time that it took elsewhere than on the calling thread.
func (k *Kernel) giveMissingCookies(ctx context.Context, classes Classes) (failed map[uint32]error, elsewhere time.Duration, err error) {
	failed = make(map[uint32]error)
	if !k.noCookieHelper {
		if err := k.pass("cookies", nil, nil); err != nil {
			return failed, 0, fmt.Errorf("read the sockets of all processes: %w", err)
		}
	}
	noCookie, err := k.findNoCookie(ctx, classes)
	if err != nil || len(noCookie) == 0 {
		return failed, 0, err
	}
	refs, err := k.namespaces()
	if err != nil {
		return failed, 0, fmt.Errorf("find network namespaces: %w", err)
	}
	own, err := ownNetns()
	if err != nil {
		return failed, 0, err
	}
	var targets []CookieTarget
	for netns, states := range noCookie {
		if ref, ok := refs[uint64(netns)]; ok || netns == own {
			targets = append(targets, CookieTarget{Netns: netns, States: states, Path: ref.path, Holder: ref.holder})
		} else {
			failed[netns] = errHidden
		}
	}
	if len(targets) == 0 {
		return failed, 0, nil
	}
	errs, elsewhere, err := k.giveCookies(ctx, targets)
	if err != nil {
		return failed, elsewhere, err
	}
	for i, t := range targets {
		if errs[i] != nil {
			failed[t.Netns] = errs[i]
		}
	}
	return failed, elsewhere, nil
}

// CookieTarget are sockets without a cookie in another network namespace.
type CookieTarget struct {
	Netns  uint32 // the inode number of the namespace
	States uint32 // of the sockets, a bit each
	// Path is a file of the namespace. If it is "", Holder is a process that is in the
	// namespace, or that has a descriptor of it or of a socket in it.
	Path   string
	Holder abi.Holder
}

// GiveCookies gives cookies to sockets in other network namespaces, which it enters on a
// thread of its own. It returns an error or nil for each target, and the CPU time that
// it took; err is not nil if ctx has ended before it was done. It may hang, since it opens
// files that users choose. It needs CAP_SYS_ADMIN and CAP_SYS_PTRACE, and CAP_NET_ADMIN
// where only a socket leads to a namespace.
func GiveCookies(ctx context.Context, targets []CookieTarget) (errs []error, cpu time.Duration, err error) {
	own, err := ownNetns()
	if err != nil {
		return nil, 0, err
	}
	errs = make([]error, len(targets))
	onSpareThread(func() {
		began := threadCPU()
		for i, t := range targets { // first, while the thread is there: that takes no privilege
			if t.Netns == own {
				errs[i] = diagCookies(t.States)
			}
		}
		for i, t := range targets {
			if t.Netns == own {
				continue
			}
			if err = ctx.Err(); err != nil {
				break
			}
			ref := netnsRef{path: t.Path, holder: t.Holder}
			if errs[i] = ref.enter(uint64(t.Netns)); errs[i] == nil {
				errs[i] = diagCookies(t.States)
			}
		}
		cpu = threadCPU() - began
	})
	return errs, cpu, err
}

// diagError is an error of sock_diag. It does not unwrap, so that gone does not apply to
// it: ENOENT means that the kernel has no tcp_diag.
type diagError struct{ error }

func (e diagError) Error() string { return "sock_diag (CONFIG_INET_TCP_DIAG): " + e.error.Error() }

// errHidden is the error for a namespace that no thread is in, that is not mounted in our
// mount namespace, and that no process holds a descriptor of.
var errHidden = errors.New("nothing leads to it that this process can see")

// findNoCookie walks all hash tables, only to find the namespaces in which sockets have
// no cookie, and the states of these sockets (bits).
func (k *Kernel) findNoCookie(ctx context.Context, classes Classes) (map[uint32]uint32, error) {
	k.census.Lock()
	defer k.census.Unlock()
	var counts abi.CensusCounts
	if err := k.objs.OnlyNoCookie.Set(uint32(1)); err != nil {
		return nil, err
	}
	req := &censusRequest{selection: &Selection{Classes: classes}, ownTables: ownTablesCPU}
	_, _, err := k.walk(ctx, req, abi.OwnTable{}, abi.Cursor{}, &counts, nil)
	if err == nil {
		_, err = k.listNetns(ctx, nil)
	}
	stop := req.cpuLimit()
	for _, t := range k.ownTables {
		if err == nil {
			_, _, err = k.walk(ctx, req, t.OwnTable, abi.Cursor{}, &counts, stop)
		}
	}
	if err := errors.Join(err, k.objs.OnlyNoCookie.Set(uint32(0))); err != nil {
		return nil, fmt.Errorf("find sockets without a cookie: %w", err)
	}
	return k.takeNoCookie()
}

// takeNoCookie returns the namespaces in which the walks since the last call have found
// sockets without a cookie, and the states of these sockets (bits). The caller holds
// k.census.
func (k *Kernel) takeNoCookie() (map[uint32]uint32, error) {
	noCookie := make(map[uint32]uint32)
	var netns, states uint32
	all := k.objs.NoCookie.Iterate()
	for all.Next(&netns, &states) {
		noCookie[netns] = states
	}
	if err := all.Err(); err != nil {
		return nil, fmt.Errorf("read namespaces of sockets without a cookie: %w", err)
	}
	for netns := range noCookie {
		if err := k.objs.NoCookie.Delete(netns); err != nil {
			return nil, fmt.Errorf("forget namespaces of sockets without a cookie: %w", err)
		}
	}
	return noCookie, nil
}

// Bits of socket states, as sock_diag expects them.
const (
	synRecvBit    = uint32(1) << abi.StateSynRecv
	finWait2Bit   = uint32(1) << abi.StateFinWait2
	timeWaitBit   = uint32(1) << abi.StateTimeWait
	listenBit     = uint32(1) << abi.StateListen
	newSynRecvBit = uint32(1) << abi.StateNewSynRecv
	// stubStates are the states of sockets that are not connections.
	stubStates = timeWaitBit | newSynRecvBit | listenBit
)

// diagCookies gives cookies to the TCP sockets in these states (bits) of the calling
// thread's network namespace: sock_diag gives one to each socket that it shows. We do not
// ask it for INET_DIAG_INFO, so that it takes no socket's lock (tcp_diag_get_info). Its
// error is a diagError.
func diagCookies(states uint32) error {
	if states&newSynRecvBit != 0 {
		states |= synRecvBit
	}
	if states&timeWaitBit != 0 { // it shows the stubs of FIN_WAIT2 as FIN_WAIT2
		states |= finWait2Bit
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddData(diagRequest{family, states})
		err := req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func([]byte) bool { return true })
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return diagError{err}
		}
	}
	return nil
}

// diagRequest is a request for the TCP sockets of a family that are in certain states:
// struct inet_diag_req_v2 (include/uapi/linux/inet_diag.h).
type diagRequest struct {
	family byte
	states uint32
}

func (diagRequest) Len() int { return 56 }

func (r diagRequest) Serialize() []byte {
	b := make([]byte, r.Len())
	b[0], b[1] = r.family, unix.IPPROTO_TCP
	nl.NativeEndian().PutUint32(b[4:], r.states)
	return b
}
