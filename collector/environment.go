// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// initialPIDNamespace is the inode number of the initial pid namespace: PROC_PID_INIT_INO
// (include/linux/proc_ns.h, and since 6.18 include/uapi/linux/nsfs.h).
const initialPIDNamespace = 0xeffffffc

// environment is what this process may do, and which part of the machine it sees.
type environment struct {
	privatePIDs         bool // our pid namespace is not the initial one
	threads, allThreads int  // in our pid namespace, and on the machine; only if privatePIDs
	descriptorsErr      error
	cgroupsErr          error
	cookiesErr          error
	searchHangs         time.Time // since when the search for sockets without a cookie hangs; zero: it does not
}

// readEnvironment finds out the environment of this process.
func readEnvironment(k Kernel, g *cgroups) environment {
	s := environment{cgroupsErr: g.from.CgroupsRefused(), descriptorsErr: g.descriptors.refused(g.from)}
	s.searchHangs, s.cookiesErr = k.CookieStatus()
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &ns); err == nil && ns.Ino != initialPIDNamespace {
		s.privatePIDs = true
		s.threads, s.allThreads = threads()
	}
	return s
}

// threads returns the number of threads in our pid namespace and on the whole machine, which
// /proc/loadavg has in every pid namespace. A number is 0 if it cannot be read.
func threads() (here, all int) {
	processes, err := procfs.AllProcs()
	if err != nil {
		return 0, 0
	}
	for _, p := range processes {
		if stat, err := p.Stat(); err == nil { // else it has ended
			here += stat.NumThreads
		}
	}
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return here, 0
	}
	var load [3]float64
	var running int
	if _, err := fmt.Sscanf(string(text), "%f %f %f %d/%d", &load[0], &load[1], &load[2], &running, &all); err != nil {
		return here, 0
	}
	return here, all
}

// maxTried is the most processes that DescriptorsRefused tries.
const maxTried = 64

// descriptorCheck checks now and then whether this process may get descriptors of others.
type descriptorCheck struct {
	sync.Mutex
	running bool      // a check is running; another process can delay it without limit
	due     time.Time // when the next check may begin
	err     error     // the result of the last check
}

const (
	// descriptorsInterval is the time between two checks. A security module may log each
	// refusal.
	descriptorsInterval = 10 * time.Minute
	// descriptorsWait is the longest wait for a check.
	descriptorsWait = time.Second
)

// refused returns the result of the last check. It begins a new one if that is due.
func (d *descriptorCheck) refused(by Privileged) error {
	d.Lock()
	if !d.running && !time.Now().Before(d.due) {
		d.running = true
		done := make(chan struct{})
		go func() {
			defer close(done)
			err := by.DescriptorsRefused()
			d.Lock()
			defer d.Unlock()
			d.running, d.err, d.due = false, err, time.Now().Add(descriptorsInterval)
		}()
		d.Unlock()
		select {
		case <-done:
		case <-time.After(descriptorsWait):
		}
		d.Lock()
	}
	defer d.Unlock()
	return d.err
}

// DescriptorsRefused returns an error if most other processes' descriptors are refused to
// this process, else nil. It asks for a descriptor number that no process has: the kernel
// checks the permission first.
func (*Direct) DescriptorsRefused() error {
	processes, err := procfs.AllProcs()
	if err != nil {
		return nil //nolint:nilerr // there is no process to try
	}
	var tried, denied int
	var last error
	for _, p := range processes {
		if p.PID == os.Getpid() {
			continue
		}
		process, err := unix.PidfdOpen(p.PID, 0)
		if err != nil {
			continue // it has ended
		}
		_, err = unix.PidfdGetfd(process, math.MaxInt32, 0)
		unix.Close(process)
		if tried++; refused(err) {
			denied++
			last = err
		}
		if tried == maxTried {
			break
		}
	}
	if 2*denied <= tried {
		return nil
	}
	return fmt.Errorf("%d of %d processes: %w", denied, tried, last)
}
