// SPDX-License-Identifier: Apache-2.0

// Package sandbox ends the privileges of a process that no longer needs them.
//
// [Enter] works on all threads of the process, and on those that it will start: it
// leaves them only the files, the capabilities and the system calls of a [Policy], and
// another user. None of this can be undone. docs/security.md says what each process of
// halfopen keeps, and why.
package sandbox
