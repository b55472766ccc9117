// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f in a goroutine that has its own OS thread. The thread ends with f, so f
// may leave it in another namespace.
//
// onThread never uses the main thread, which cannot end before the process: the runtime
// would park it in f's namespace, which would keep the namespace alive, and /proc/self
// would show that namespace for the whole process.
func onThread(f func()) {
	go func() {
		runtime.LockOSThread() // and never unlocks it, so the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		// Occupy the main thread until another goroutine has locked itself to a thread,
		// which must then be a different one.
		locked := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(locked)
			f()
		}()
		<-locked
		runtime.UnlockOSThread()
	}()
}
