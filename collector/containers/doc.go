// SPDX-License-Identifier: Apache-2.0

// Package containers finds the names of a container in the state files of its runtime:
// containerd, CRI-O, Docker and Podman. It asks no runtime and no API server.
//
// Such a file also has the environment of the container, and so its passwords. The package
// reads a file as a stream and keeps nothing but the names. Only root can write these
// files, but what is in them may come from users: names can be any text.
package containers
