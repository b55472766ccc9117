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

// initialPIDs is the inode number of the initial pid namespace: PROC_PID_INIT_INO
// (include/linux/proc_ns.h, and since 6.18 include/uapi/linux/nsfs.h).
const initialPIDs = 0xeffffffc

// environment are the facts of this process: what it may do, and where it is.
type environment struct {
	privatePIDs         bool // our pid namespace is not the initial one
	threads, allThreads int  // in our pid namespace, and on the machine; only if privatePIDs
	descriptorsErr      error
	cgroupsErr          error
	cookiesErr          error
	searchHangs         time.Time // since when the search for sockets without a cookie hangs; zero: it does not
}

func readEnvironment(k Kernel, g *cgroups) environment {
	s := environment{cgroupsErr: g.refused(), descriptorsErr: g.descriptors.refused()}
	s.searchHangs, s.cookiesErr = k.CookieStatus()
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &ns); err == nil && ns.Ino != initialPIDs {
		s.privatePIDs = true
		s.threads, s.allThreads = threads()
	}
	return s
}

// threads counts those of our pid namespace, and those of the machine, which
// /proc/loadavg has whatever the namespace.
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

// asked is how many processes are asked for a descriptor at most.
const asked = 64

// descriptorCheck asks now and then whether other processes' descriptors can be had.
type descriptorCheck struct {
	sync.Mutex
	running bool // it may wait for as long as a process likes that is asked
	due     time.Time
	err     error
}

const (
	// descriptorsInterval is between two checks: who refuses may log each question.
	descriptorsInterval = 10 * time.Minute
	descriptorsWait     = time.Second
)

// refused returns what descriptorsRefused said last.
func (d *descriptorCheck) refused() error {
	d.Lock()
	if !d.running && !time.Now().Before(d.due) {
		d.running = true
		done := make(chan struct{})
		go func() {
			defer close(done)
			err := descriptorsRefused()
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

// descriptorsRefused returns why the kernel does not let us have descriptors of other
// processes, nil if it does for most. It asks for one that no process has: the kernel
// looks first whether we may.
func descriptorsRefused() error {
	processes, err := procfs.AllProcs()
	if err != nil {
		return nil //nolint:nilerr // there is nobody to ask
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
		if tried == asked {
			break
		}
	}
	if 2*denied <= tried {
		return nil
	}
	return fmt.Errorf("%d of %d processes: %w", denied, tried, last)
}
