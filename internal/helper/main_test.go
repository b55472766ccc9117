// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/bpf"
	"github.com/halfopen/halfopen/collector"
)

// asker writes questions as it likes to answer, which runs in this process.
type asker struct {
	net.Conn
	answers *json.Decoder
	ended   chan error
}

func ask(t *testing.T, a *answers) *asker {
	t.Helper()
	ours, theirs := net.Pipe()
	k := &asker{ours, json.NewDecoder(ours), make(chan error, 1)}
	a.direct = collector.NewDirect()
	go func() { k.ended <- answer(theirs, a) }()
	t.Cleanup(func() { ours.Close() })
	if err := ours.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return k
}

// write writes a text, until the other end reads no further.
func (k *asker) write(format string, arguments ...any) {
	fmt.Fprintf(k, format, arguments...)
}

// answer returns the next answer as JSON.
func (k *asker) answer(t *testing.T) string {
	t.Helper()
	var raw json.RawMessage
	if err := k.answers.Decode(&raw); err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// end waits until answer has returned.
func (k *asker) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-k.ended:
		return err
	case <-time.After(time.Minute):
		t.Fatal("it still waits for questions")
		return nil
	}
}

// What is not in the list of questions, or beyond its bounds, is refused. The next
// question is answered.
func TestHelperRefusesWhatIsNotAQuestion(t *testing.T) {
	k := ask(t, &answers{giveCookies: func(context.Context, []bpf.CookieTarget) ([]error, time.Duration, error) {
		t.Error("it was asked to give cookies")
		return nil, 0, nil
	}})
	path := strings.Repeat("A", 4*(maxPath/3+1)) // base64
	for _, question := range []string{
		`{"method":"Helper.Exec","params":["/bin/sh"]}`,
		`{"method":"exec","params":[]}`,
		`{"method":"Helper.GiveCookies"}`,
		`{"method":"Helper.GiveCookies","params":[[` + strings.Repeat(`{},`, maxTargets) + `{}]]}`,
		`{"method":"Helper.GiveCookies","params":[[{"Path":"` + path + `"}]]}`,
		`{"method":"Helper.GiveCookies","params":[[{"Netns":-1}]]}`,
		`{"method":"Helper.CgroupPath","params":["/"]}`,
		`{"method":"Helper.FlowPath"}`,
		`{"method":"Helper.FlowPath","params":[{"Path":"` + path + `"}]}`,
		`{"method":"Helper.FlowPath","params":[{"Local":"127.0.0.1","Remote":"127.0.0.1:1"}]}`,
		`{"method":"Helper.FlowPath","params":[{"Local":127}]}`,
		`{"method":"Helper.FlowPath","params":[{"Netns":4294967296}]}`,
		`{"method":"Helper.ContainerNames","params":["/etc/shadow"]}`,
	} {
		k.write("%s", question)
		if got := k.answer(t); !strings.Contains(got, `"result":null`) || strings.Contains(got, `"error":null`) {
			t.Errorf("%.60s was answered: %s", question, got)
		}
	}
	k.write(`{"method":"Helper.CgroupsRefused","params":[{}],"id":7}`)
	if got := k.answer(t); !strings.Contains(got, `"id":7`) || !strings.Contains(got, `"error":null`) {
		t.Errorf("the last question was answered: %s", got)
	}
	k.Close()
	if err := k.end(t); err != nil {
		t.Error(err)
	}
}

// Garbage, and a question without end, end the helper.
func TestHelperEndsAtGarbage(t *testing.T) {
	k := ask(t, new(answers))
	k.write("GET / HTTP/1.1\r\n\r\n")
	if err := k.end(t); err == nil {
		t.Error("garbage is no error")
	}
	k = ask(t, new(answers))
	k.write(`{"method":"%s`, strings.Repeat("x", maxQuestion))
	if err := k.end(t); !errors.Is(err, errTooLong) {
		t.Errorf("%v for a question without end", err)
	}
}

// Questions that hang delay neither others nor the end of the helper, and there are few.
func TestHelperThatHangs(t *testing.T) {
	began, hang := make(chan struct{}), make(chan struct{})
	defer close(hang)
	k := ask(t, &answers{giveCookies: func(context.Context, []bpf.CookieTarget) ([]error, time.Duration, error) {
		began <- struct{}{}
		<-hang
		return nil, 0, nil
	}})
	for range maxHanging {
		k.write(`{"method":"Helper.GiveCookies","params":[[{}]]}`)
		<-began
	}
	for range 2 * maxRunning {
		k.write(`{"method":"Helper.GiveCookies","params":[[{}]],"id":1}`)
		if got := k.answer(t); !strings.Contains(got, fmt.Sprintf(`"Errno":%d`, unix.EBUSY)) {
			t.Fatalf("one question more than may hang was answered: %s", got)
		}
	}
	k.write(`{"method":"Helper.CgroupPath","params":[1],"id":2}`)
	if got := k.answer(t); !strings.Contains(got, `"id":2`) {
		t.Errorf("a question that does not hang was answered: %s", got)
	}
	k.Close()
	if err := k.end(t); err != nil {
		t.Error(err)
	}
}

// Paths keep their bytes, and there may be more namespaces than one question has.
func TestHelperTakesManyPathsOfAnyBytes(t *testing.T) {
	h := start(t, "")
	file := filepath.Join(t.TempDir(), "no \xff namespace")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	targets := make([]bpf.CookieTarget, 2*maxTargets+1)
	for i := range targets {
		targets[i] = bpf.CookieTarget{Netns: 1, Path: file}
	}
	errs, _, err := h.GiveCookies(t.Context(), targets)
	if err != nil || len(errs) != len(targets) {
		t.Fatalf("%d answers for %d namespaces, %v", len(errs), len(targets), err)
	}
	for i, err := range errs {
		if !errors.Is(err, unix.ESRCH) { // ENOENT if the path had become another
			t.Fatalf("namespace %d: %v", i, err)
		}
	}
}

// FuzzAnswer lets answer read any bytes.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		`{"method":"Helper.GiveCookies","params":[[{"Netns":1,"States":2,"Path":"Lw==","Holder":{"PID":1,"FD":3,"Kind":2}}]],"id":1}`,
		`{"method":"Helper.CgroupPath","params":[1],"id":2}{"method":"Helper.CgroupsRefused","params":[{}],"id":3}`,
		`{"method":"Helper.RemoveSocket","params":[{"Device":1,"Inode":2}],"id":{}}`,
		`{"method":"Helper.FlowPath","params":[{"Netns":1,"Path":"Lw==","Holder":{"PID":1},"Cookie":1,"Local":"10.0.0.1:1","Remote":"[::1]:2"}],"id":1}`,
		`{"method":"Helper.ContainerNames","params":[{"ID":"../../../etc/shadow","PodUID":"x"}],"id":4}`,
		`{"method":"Helper.Exec","params":null}`, "\x00", `{"method":`,
	} {
		f.Add([]byte(seed))
	}
	direct := collector.NewDirect()
	f.Fuzz(func(t *testing.T, questions []byte) {
		a := &answers{direct: direct, giveCookies: func(_ context.Context, targets []bpf.CookieTarget) ([]error, time.Duration, error) {
			if len(targets) > maxTargets {
				t.Errorf("%d namespaces", len(targets))
			}
			return make([]error, len(targets)), 0, nil
		}}
		_ = answer(struct {
			io.Reader
			io.WriteCloser
		}{bytes.NewReader(questions), discard{io.Discard}}, a)
	})
}

type discard struct{ io.Writer }

func (discard) Close() error { return nil }
