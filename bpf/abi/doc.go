// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

// Package abi has the types and constants that the kernel programs and user space
// share. abi.go is generated from the compiled programs; bpf/halfopen.h explains each
// field and value, with its unit. The package imports no other of this module.
package abi
