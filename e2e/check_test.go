// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/halfopen/halfopen/internal/lab"
)

// A script that asks whether a setting has been mended gets status 3 while a connection is
// left, and 0 from then on: from an agent, and from the kernel itself.
func TestCheckSaysWhetherAnythingIsLeft(t *testing.T) {
	families(t, func(t *testing.T, n *network) {
		n.serve(7320, echo)
		conns := n.dial(7320, 2)
		a := startAgent(t)
		check := func(want int) {
			t.Helper()
			for _, from := range []string{a.url, "none"} {
				cmd := exec.Command(binary, "check", "--risk=no_keepalive", "--port=7320", fmt.Sprint("--netns=", n.Client.Inode()), "--url="+from)
				out, err := cmd.Output()
				if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
					t.Fatal(err)
				}
				status := 0
				if want > 0 {
					status = 3
				}
				if got := cmd.ProcessState.ExitCode(); got != status {
					t.Errorf("of %s: status %d, expected %d: %v", from, got, status, err)
				}
				if lines := strings.Count(string(out), ":7320 "); lines != want {
					t.Errorf("of %s: %d connections are listed, expected %d:\n%s", from, lines, want, out)
				}
			}
		}
		check(2)
		for i, c := range conns {
			if err := lab.SetKeepalive(c, time.Minute, time.Second, 9); err != nil {
				t.Fatal(err)
			}
			check(len(conns) - i - 1)
		}
	})
}
