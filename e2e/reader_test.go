// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The reader of an agent's log goes away after the first line, as in agent 2>&1 | head -n 1.
func TestAgentOutlivesTheReaderOfItsLog(t *testing.T) {
	t.Parallel()
	reader, log, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	addr := freeAddr(t)
	a := &agent{t: t, url: "http://" + addr, log: &buffer{}, done: make(chan struct{})}
	a.cmd = exec.Command(binary, "agent", "--web.listen-address="+addr)
	a.cmd.Stdout, a.cmd.Stderr = log, log
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log.Close()
	go func() {
		a.err = a.cmd.Wait()
		close(a.done)
	}()
	t.Cleanup(func() { a.stop() })
	if line, err := bufio.NewReader(reader).ReadString('\n'); err != nil {
		t.Fatalf("the agent's first line is %q: %v", line, err)
	}
	reader.Close()
	a.ready()
	if status := a.stop(); status != 0 { // which it logs
		t.Errorf("exit status %d (%v), expected 0", status, a.err)
	}
}

// Commands that print end with status 0 when their reader has gone, as in list | head.
func TestCommandsEndWithTheirReader(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"list"}, {"list", "-o", "json", "--all"}, {"doctor"}, {"demo"}, {"version", "--licenses"}, {"--help"}} {
		reader, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		reader.Close()
		cmd := exec.Command(binary, args...)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = out, &stderr
		err = cmd.Run()
		out.Close()
		if err != nil || strings.Contains(stderr.String(), "halfopen: ") {
			t.Errorf("%v: %v, stderr %q; expected exit status 0 and no error", args, err, stderr.String())
		}
	}
}
