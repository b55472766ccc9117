// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"os"
	"testing"
)

func TestTheGroupOfAProcessIsReadOnce(t *testing.T) {
	g := make(processGroups)
	self := uint32(os.Getpid())
	if got, want := g.of(self), ofProcess(self); got != want {
		t.Errorf("%+v, expected %+v", got, want)
	}
	g[self] = Group{Path: "/read"}
	if got := g.of(self); got.Path != "/read" {
		t.Errorf("read again: %+v", got)
	}
}
