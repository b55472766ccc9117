// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f in a goroutine that has an OS thread to itself. The thread
// ends with f, so f may leave it in another namespace.
//
// The main thread is never used. It cannot end before the process: the runtime
// would park it in f's namespace for ever, and keep that alive, and as
// /proc/self it would speak for the whole process.
func onThread(f func()) {
	go func() {
		runtime.LockOSThread() // and never unlocked: that is what ends the thread
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		// Sit on the main thread until another goroutine has locked itself to
		// a thread, which then must be a different one.
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
