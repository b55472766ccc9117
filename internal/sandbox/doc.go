// SPDX-License-Identifier: Apache-2.0

// Package sandbox ends the privileges of a process that no longer needs them.
//
// [Enter] restricts all threads of the process, and all that it starts later, to the files,
// capabilities and system calls of a [Policy], and changes their user. No later call can
// undo this. docs/security.md lists what each process of halfopen keeps, and why.
package sandbox
