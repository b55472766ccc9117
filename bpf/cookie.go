// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

package bpf

import (
	"context"
	"errors"
	"fmt"
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

// A socket has no cookie until somebody asks for it. Since 5.12 a tracing program can:
// that of inet_sock_set_state at the beginning of each connection, and a pass over all
// descriptors for those that are older. Before, a program of cgroups does the first.
// What remains gets its cookie from sock_diag, in its network namespace. None of these
// takes a socket's lock: a process may sleep with it for as long as it likes.

// CookiesErr is why a connection that begins while we observe is without a cookie
// until a census, so that what it asks before is not seen; nil if it is not.
func (k *Kernel) CookiesErr() error { return k.cookiesErr }

// giveCookies gives every TCP socket a cookie that connects, or is made by a
// listener, until it is closed.
func giveCookies() (link.Link, error) {
	const initial = 0xeffffffb // PROC_CGROUP_INIT_INO, include/linux/proc_ns.h
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/cgroup", &ns); err == nil && ns.Ino != initial {
		return nil, errors.New("in a cgroup namespace of our own there is no root of all cgroups: use the host's")
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SockOps, AttachType: ebpf.AttachCGroupSockOps, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.FnGetSocketCookie.Call(),
			asm.Mov.Imm(asm.R0, 1), // nothing else is to change
			asm.Return(),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	defer program.Close()
	// A mount that nobody else sees: the hierarchy need not be mounted.
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
	defer unix.Close(root)
	l, err := link.AttachCgroup(link.CgroupOptions{
		Path: fmt.Sprintf("/proc/self/fd/%d", root), Attach: ebpf.AttachCGroupSockOps, Program: program,
	})
	if err != nil {
		return nil, fmt.Errorf("attach to the root cgroup: %w", err)
	}
	return l, nil
}

const (
	// cookiesInterval is how long after one search for sockets without a cookie the
	// next begins at the earliest, and cookiesShare is the share of a core that these
	// searches may take.
	cookiesInterval = 30 * time.Second
	cookiesShare    = 0.005
	// A census waits for the search this long: for the first one, which finds every
	// socket that is older than the agent, and for a later one.
	firstCookiesWait = 10 * time.Second
	laterCookiesWait = time.Second
	// A search that takes longer than this hangs.
	cookiesHang = time.Minute
)

// cookieSearch is the state of the search for sockets without a cookie.
type cookieSearch struct {
	sync.Mutex
	ended   bool          // once at least
	running chan struct{} // of the one that is under way: closed when it ends; it may hang: it opens files that users choose
	began   time.Time     // the one that is under way
	cpu     time.Duration // of a core that the last one took
	due     time.Time     // the next
	without bool          // the last census has seen connections without a cookie
	// failed are the namespaces in which sockets could not be given cookies, and why.
	// err is why the last search did not get to all of them.
	failed map[uint32]error
	err    error
}

// CookieSearchHangs returns since when the search for sockets without a cookie has
// not ended; zero if it does not hang.
func (k *Kernel) CookieSearchHangs() time.Time {
	s := &k.cookies
	s.Lock()
	defer s.Unlock()
	if s.running != nil && time.Since(s.began) > cookiesHang {
		return s.began
	}
	return time.Time{}
}

// judge completes the result of a census that has seen sockets without a cookie in
// these namespaces, by their states.
func (s *cookieSearch) judge(without map[uint32]uint32, res *CensusResult) {
	s.Lock()
	defer s.Unlock()
	s.without = false
	for netns, states := range without {
		if states&^stubStates == 0 {
			continue // they only matter to those who list them
		}
		s.without = true
		switch err, failed := s.failed[netns]; {
		case !failed && s.err != nil:
			res.Unvisited++
			res.Err = fmt.Errorf("search for sockets without a cookie: %w", s.err)
		case !failed: // they are new, and have their turn
		case gone(err):
			res.Unvisited++
		case errors.Is(err, errNoWay):
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

// assignCookies gives cookies to the sockets that have none, before a census that
// writes out the classes of a set of bits, if there may be such sockets. It returns
// the time that this took of a core. What it opens belongs to others, and may not
// answer: then the search goes on alone, and there is no other until it ends.
func (k *Kernel) assignCookies(ctx context.Context, write uint32) time.Duration {
	s := &k.cookies
	stubs := write&(1<<ClassNone) != 0
	s.Lock()
	if s.ended && !stubs && (!s.without || time.Now().Before(s.due)) {
		s.Unlock()
		return 0
	}
	wait := laterCookiesWait
	if !s.ended {
		wait = firstCookiesWait
	}
	running := s.running
	if running == nil {
		running = make(chan struct{})
		s.running, s.began = running, time.Now()
		go k.searchCookieless(write, running)
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

// searchCookieless takes one search, on a thread that may end in any namespace.
func (k *Kernel) searchCookieless(write uint32, done chan struct{}) {
	onSpareThread(func() {
		began := threadCPU()
		failed, err := k.findCookieless(k.ctx, write)
		cpu := threadCPU() - began
		s := &k.cookies
		s.Lock()
		defer s.Unlock()
		s.failed, s.err, s.cpu = failed, err, cpu
		s.running, s.ended = nil, s.ended || err == nil
		s.due = time.Now().Add(max(cookiesInterval, time.Duration(float64(cpu)/cookiesShare)))
	})
	close(done)
}

// onSpareThread runs f on a thread of its own, which ends afterwards, and waits for it.
// That is never the first thread: the process would keep it for good, in whatever
// network namespace f has left it.
func onSpareThread(f func()) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread() // and, as a rule, never unlocked
		if unix.Gettid() == unix.Getpid() {
			onSpareThread(f) // while this sits on the first thread, others cannot
			runtime.UnlockOSThread()
		} else {
			f()
		}
		close(done)
	}()
	<-done
}

// findCookieless finds the sockets that have no cookie, and gives them one: to those
// that a process holds by a descriptor, by one pass over all descriptors; to the
// others by sock_diag, in each of their namespaces. It returns the namespaces where
// that failed, and why. The calling thread is of no use to others afterwards.
func (k *Kernel) findCookieless(ctx context.Context, write uint32) (failed map[uint32]error, err error) {
	failed = make(map[uint32]error)
	if !k.noCookieHelper {
		if err := k.pass("cookies", nil, nil); err != nil {
			return failed, fmt.Errorf("look at the sockets of all processes: %w", err)
		}
	}
	without, err := k.findNoCookie(ctx, write)
	if err != nil || len(without) == 0 {
		return failed, err
	}
	var own unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil {
		return failed, err
	}
	diag := func(netns, states uint32) {
		if err := diagCookies(states); err != nil {
			failed[netns] = diagError{err}
		}
	}
	if states, ok := without[uint32(own.Ino)]; ok { // first, since it takes no privilege to be there
		delete(without, uint32(own.Ino))
		diag(uint32(own.Ino), states)
	}
	ways, err := k.namespaces()
	if err != nil {
		return failed, fmt.Errorf("find network namespaces: %w", err)
	}
	for netns, states := range without {
		if err := ctx.Err(); err != nil {
			return failed, err
		}
		w, ok := ways[uint64(netns)]
		if !ok {
			failed[netns] = errNoWay
		} else if err := enter(&w, uint64(netns)); err != nil {
			failed[netns] = err
		} else {
			diag(netns, states)
		}
	}
	return failed, nil
}

// diagError is what sock_diag says, which is no way that has gone: ENOENT is that the
// kernel has no tcp_diag.
type diagError struct{ error }

func (e diagError) Error() string { return "sock_diag (CONFIG_INET_TCP_DIAG): " + e.error.Error() }

// errNoWay is of a namespace that no thread is in, that is not mounted where we see
// it, and that no process holds a descriptor of.
var errNoWay = errors.New("nothing leads to it that this process can see")

// findNoCookie walks through all hash tables only to see in which namespaces sockets
// have no cookie, and in which states these are (bits).
func (k *Kernel) findNoCookie(ctx context.Context, write uint32) (map[uint32]uint32, error) {
	k.census.Lock()
	defer k.census.Unlock()
	var res CensusResult
	var counts CensusCounts
	if err := errors.Join(k.objs.CensusWrite.Set(write), k.objs.OnlyNoCookie.Set(uint32(1))); err != nil {
		return nil, err
	}
	_, _, err := k.walk(ctx, abi.OwnTable{}, abi.Cursor{}, &counts, nil, nil)
	if err == nil {
		err = k.listNetns(ctx, &res)
	}
	stop := cpuLimit(ownTablesCPU)
	for _, t := range k.ownTables {
		if err == nil {
			_, _, err = k.walk(ctx, t.OwnTable, abi.Cursor{}, &counts, nil, stop)
		}
	}
	if err := errors.Join(err, k.objs.OnlyNoCookie.Set(uint32(0))); err != nil {
		return nil, fmt.Errorf("find sockets without a cookie: %w", err)
	}
	return k.takeNoCookie()
}

// takeNoCookie returns in which namespaces the walks since the last call have seen
// sockets without a cookie, and in which states these are. The caller holds k.census.
func (k *Kernel) takeNoCookie() (map[uint32]uint32, error) {
	without := make(map[uint32]uint32)
	var netns, states uint32
	all := k.objs.NoCookie.Iterate()
	for all.Next(&netns, &states) {
		without[netns] = states
	}
	if err := all.Err(); err != nil {
		return nil, fmt.Errorf("read namespaces of sockets without a cookie: %w", err)
	}
	for netns := range without {
		if err := k.objs.NoCookie.Delete(netns); err != nil {
			return nil, fmt.Errorf("forget namespaces of sockets without a cookie: %w", err)
		}
	}
	return without, nil
}

// Bits of states, as sock_diag takes them.
const (
	synRecvBit    = uint32(1) << abi.StateSynRecv
	finWait2Bit   = uint32(1) << abi.StateFinWait2
	timeWaitBit   = uint32(1) << abi.StateTimeWait
	listenBit     = uint32(1) << abi.StateListen
	newSynRecvBit = uint32(1) << abi.StateNewSynRecv
	// stubStates are those of what is no connection.
	stubStates = timeWaitBit | newSynRecvBit | listenBit
)

// diagCookies gives a cookie to every TCP socket of the calling thread's network
// namespace that is in one of these states and has none: sock_diag gives one to each
// socket that it shows. It takes no socket's lock, since it is not asked for
// INET_DIAG_INFO (tcp_diag_get_info).
func diagCookies(states uint32) error {
	if states&newSynRecvBit != 0 {
		states |= synRecvBit
	}
	if states&timeWaitBit != 0 { // it shows what is left of FIN_WAIT2 as that
		states |= finWait2Bit
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddData(diagRequest{family, states})
		err := req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func([]byte) bool { return true })
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return nil
}

// diagRequest is struct inet_diag_req_v2 (include/uapi/linux/inet_diag.h): the TCP
// sockets of a family that are in some states.
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
