// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"
)

// terminal is a shell in a detached session of tmux.
type terminal struct {
	t      *testing.T
	socket string
	shell  int // its pid
}

const prompt = "ready>"

func newTerminal(t *testing.T, width, height int, env ...string) *terminal {
	t.Helper()
	m := &terminal{t: t, socket: filepath.Join(t.TempDir(), "tmux")}
	m.tmux("-f", "/dev/null", "new-session", "-d", "-x", strconv.Itoa(width), "-y", strconv.Itoa(height),
		"env -u TMUX "+strings.Join(env, " ")+" PS1='"+prompt+" ' ENV= HISTFILE= sh")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the screen:\n%s", m.screen())
		}
		_ = exec.Command("tmux", "-S", m.socket, "kill-server").Run()
	})
	m.shell, _ = strconv.Atoi(m.tmux("display", "-p", "#{pane_pid}"))
	m.shows("a prompt", prompt)
	return m
}

func (m *terminal) tmux(args ...string) string {
	m.t.Helper()
	out, err := exec.Command("tmux", append([]string{"-u", "-S", m.socket}, args...)...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("tmux %s: %v: %s", args[0], err, out)
	}
	return strings.TrimSuffix(string(out), "\n")
}

// types types text as it is.
func (m *terminal) types(text string) { m.t.Helper(); m.tmux("send-keys", "-l", text) }

// presses presses keys, by tmux's names of them.
func (m *terminal) presses(keys ...string) {
	m.t.Helper()
	m.tmux(append([]string{"send-keys"}, keys...)...)
}

func (m *terminal) resize(width, height int) {
	m.t.Helper()
	m.tmux("resize-window", "-x", strconv.Itoa(width), "-y", strconv.Itoa(height))
}

func (m *terminal) screen() string { m.t.Helper(); return m.tmux("capture-pane", "-p") }

// shows waits until each of these is on the screen, and returns it.
func (m *terminal) shows(what string, words ...string) (screen string) {
	m.t.Helper()
	eventually(m.t, what, func() error {
		screen = m.screen()
		for _, w := range words {
			if !strings.Contains(screen, w) {
				return fmt.Errorf("no %q on the screen", w)
			}
		}
		return nil
	})
	return screen
}

// lacks waits until this is no longer on the screen.
func (m *terminal) lacks(what, word string) {
	m.t.Helper()
	eventually(m.t, what, func() error {
		if strings.Contains(m.screen(), word) {
			return fmt.Errorf("%q is on the screen", word)
		}
		return nil
	})
}

// state is how the terminal is set up, apart from what is on it.
func (m *terminal) state() string {
	m.t.Helper()
	path := m.tmux("display", "-p", "#{pane_tty}")
	tty, err := os.Open(path)
	if err != nil {
		m.t.Fatal(err)
	}
	defer tty.Close()
	stty := exec.Command("stty", "-g")
	stty.Stdin = tty
	out, err := stty.Output()
	if err != nil {
		m.t.Fatalf("stty -g: %v", err)
	}
	return string(out) + m.tmux("display", "-p",
		"alternate=#{alternate_on} cursor=#{cursor_flag} mouse=#{mouse_any_flag} keypad=#{keypad_flag} insert=#{insert_flag} wrap=#{wrap_flag} origin=#{origin_flag} keys=#{keypad_cursor_flag} title=#{pane_title}")
}

// children are the processes that a process has started.
func children(t *testing.T, pid int) (pids []int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err == nil && len(text) == 0 { // by a thread that is not the first
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		for _, path := range threads {
			more, _ := os.ReadFile(path)
			text = append(text, more...)
		}
	}
	for _, f := range strings.Fields(string(text)) {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, n)
	}
	return pids
}

// tops are the processes of `halfopen top`: the started process, and the one
// that draws.
func (m *terminal) tops() (outer, inner int) {
	m.t.Helper()
	eventually(m.t, "top runs in a process of its own", func() error {
		outers := children(m.t, m.shell)
		if len(outers) != 1 {
			return fmt.Errorf("the shell has children %v", outers)
		}
		outer = outers[0]
		inners := children(m.t, outer)
		if len(inners) != 1 {
			return fmt.Errorf("top has children %v", inners)
		}
		inner = inners[0]
		return nil
	})
	return outer, inner
}

// row finds the first row of the table.
var row1 = regexp.MustCompile(`(?m)^VERDICT.*\n(.*)$`)

func firstRow(screen string) string {
	if m := row1.FindStringSubmatch(screen); m != nil {
		return m[1]
	}
	return ""
}

// topTraffic is a node with zombies to find.
func topTraffic(t *testing.T) (n *network, a *agent) {
	n = newNetwork(t, "ipv4")
	a = startAgent(t, "--zombie-silence=1s", "--zombie-unanswered=2")
	n.serve(droppedPort, echo)
	n.serve(servedPort, echo)
	conns := n.dial(droppedPort, 2)
	n.greet(conns)
	n.greet(n.dial(servedPort, 3))
	n.keepalive(conns, time.Second, time.Second, 120)
	n.cut(droppedPort)
	eventually(t, "there are zombies", func() error {
		return all(a.connections(n, droppedPort, ""), 2, "zombie")
	})
	n.keepalive(conns, time.Second, 20*time.Second, 120) // subtests may wait for other tests for minutes
	return n, a
}

func TestTop(t *testing.T) {
	t.Parallel()
	n, a := topTraffic(t)
	m := newTerminal(t, 80, 24)
	m.types("echo what was here before")
	m.presses("Enter")
	m.shows("the shell", "\nwhat was here before\n"+prompt)
	before, state := m.screen(), m.state()

	// Others are trying other things on this node.
	only := fmt.Sprintf("netns:%d", n.Client.Inode())
	command := fmt.Sprintf("%s top --url %s --netns %d", binary, a.url, n.Client.Inode())
	m.types(command)
	m.presses("Enter")
	zombie, other := n.server(droppedPort).String(), n.server(servedPort).String()
	screen := m.shows("the connections", "halfopen top", "running for", " zombie  ", zombie, other, "5 connections", "/"+only)
	if row := firstRow(screen); !strings.HasPrefix(row, "zombie ") || !strings.Contains(row, zombie) || !strings.Contains(row, "e2e.test[") {
		t.Errorf("the first is not a zombie with its owner: %q", row)
	}
	if strings.Contains(screen, "what was here before") {
		t.Error("what was on the screen still is")
	}

	// It counts down.
	left := regexp.MustCompile(`\d+m\d+s|\d+s`)
	was := left.FindAllString(firstRow(screen), -1)
	eventually(t, "the countdown goes on", func() error {
		if now := left.FindAllString(firstRow(m.screen()), -1); slices.Equal(now, was) {
			return fmt.Errorf("still %v", now)
		}
		return nil
	})

	m.presses("?")
	m.shows("help", "KEYS", "FILTERS", "verdict:zombie")
	m.presses("Escape")
	m.lacks("help goes", "FILTERS")

	m.presses("Enter")
	m.shows("one connection", "The kernel gives up in ", "keepalive_timeout", "Owner: e2e.test[", "WHAT IT IS DOING", "Verdict: zombie.")
	m.presses("G")
	m.shows("its end", "WHAT HAPPENED LATELY", "zombie, was ")
	m.presses("Escape")
	m.lacks("the connection goes", "WHAT HAPPENED LATELY")

	m.presses("s", "s")
	m.shows("sorted", "SILENT▾", "by silent")
	m.presses("r")
	m.shows("the other way", "SILENT▴")
	m.presses("r", "S", "S")
	m.lacks("worst first again", "▾")

	// As one types, and both kinds.
	m.presses("/")
	m.types(" " + other)
	m.lacks("filtered by what is shown", zombie)
	m.presses("C-w")
	m.shows("all again", zombie)
	m.types("verdict:zombie port:" + strconv.Itoa(droppedPort))
	m.lacks("filtered by the agent", other)
	m.presses("Enter")
	m.shows("it says so", "2 connections", "/"+only+" verdict:zombie port:")

	// Whatever the size.
	for _, size := range [][2]int{{120, 40}, {40, 10}, {200, 50}, {12, 3}, {1, 1}, {3, 2}, {80, 24}} {
		m.resize(size[0], size[1])
		if size[0] < 40 {
			continue
		}
		want := []string{"GIVES UP", zombie, "2 connections"}
		if size[0] >= 120 {
			want = append(want, "UNANSWERED", "IDLE", "OWNER")
		}
		screen := m.shows(fmt.Sprintf("%d columns", size[0]), want...)
		for line := range strings.Lines(screen) {
			if w := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); w > size[0] {
				t.Errorf("a line of %d at %d columns: %q", w, size[0], line)
			}
		}
	}

	m.presses("p")
	paused := m.shows("paused", "paused")
	time.Sleep(1200 * time.Millisecond) // in which a second of the clock goes by
	if now := m.screen(); now != paused {
		t.Errorf("paused, and the screen changed from\n%s\nto\n%s", paused, now)
	}
	m.presses("p")
	m.lacks("it goes on", "paused")

	// The agent goes, and another one comes.
	a.stop()
	m.shows("the agent is lost", "Lost at ", "trying again", "refused", zombie)
	start(t, "agent", "--web.socket=none", "--zombie-silence=1s", "--zombie-unanswered=2", "--web.listen-address="+strings.TrimPrefix(a.url, "http://"))
	m.lacks("the agent is back", "Lost at ")
	m.shows("and what it sees", "running for", zombie)

	m.presses("q")
	m.restored(before, command, state)
}

// restored waits until the shell is back, and the terminal is as it was before a
// command was typed.
func (m *terminal) restored(before, command, state string) {
	m.t.Helper()
	want := strings.TrimRight(before, "\n ") + " " + command + "\n" + prompt
	eventually(m.t, "the screen is as it was", func() error {
		// A command may be longer than the screen is wide.
		if now := strings.TrimRight(m.tmux("capture-pane", "-p", "-J"), "\n "); now != want {
			return fmt.Errorf("it is\n%s\nexpected\n%s", now, want)
		}
		return nil
	})
	if now := m.state(); now != state {
		m.t.Errorf("the terminal was %s, and is %s", state, now)
	}
}

// ended waits until a process has ended.
func (m *terminal) ended(pid int) {
	m.t.Helper()
	eventually(m.t, "the process ends", func() error {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("process %d is still there: %v", pid, err)
		}
		return nil
	})
}

// restoredAnd is restored, but that it was said why.
func (m *terminal) restoredAnd(before, command, state string, says []string) {
	m.t.Helper()
	eventually(m.t, "the screen is as it was, and it is said why", func() error {
		all := strings.TrimRight(m.tmux("capture-pane", "-p", "-J", "-S", "-"), "\n ")
		said, here := strings.CutPrefix(all, strings.TrimRight(before, "\n ")+" "+command+"\n")
		if !here || !strings.HasSuffix(said, "\n"+prompt) {
			return fmt.Errorf("it is\n%.2000s", all)
		}
		for _, word := range says {
			if !strings.Contains(said, word) {
				return fmt.Errorf("no word of %q in\n%.2000s", word, said)
			}
		}
		if now := m.state(); now != state {
			return fmt.Errorf("the terminal was %s, and is %s", state, now)
		}
		return nil
	})
}

func TestTopLeavesTheTerminalAsItWas(t *testing.T) {
	t.Parallel()
	_, a := topTraffic(t)
	for name, test := range map[string]struct {
		args   string
		signal syscall.Signal
		inner  bool     // to the process that draws
		says   []string // afterwards; none: nothing at all
	}{
		"terminated":                     {"--url " + a.url, syscall.SIGTERM, false, nil},
		"interrupted":                    {"--url " + a.url, syscall.SIGINT, false, nil},
		"hung up":                        {"--url " + a.url, syscall.SIGHUP, false, nil},
		"by itself, terminated":          {"--url=none --port " + strconv.Itoa(droppedPort), syscall.SIGTERM, false, nil},
		"terminated, where it draws":     {"--url " + a.url, syscall.SIGTERM, true, nil},
		"killed":                         {"--url " + a.url, syscall.SIGKILL, true, []string{"halfopen: top was ended: signal: killed"}},
		"killed, where it does not draw": {"--url " + a.url, syscall.SIGKILL, false, []string{}},
		"crashed":                        {"--url " + a.url, syscall.SIGABRT, true, []string{"SIGABRT: abort", "goroutine ", "halfopen: top was ended: exit status 2; please report this and the text above"}},
		"by itself, crashed":             {"--url=none --port " + strconv.Itoa(droppedPort), syscall.SIGSEGV, true, []string{"SIGSEGV", "please report this and the text above"}},
		"terminated, and shows no color": {"--url " + a.url, syscall.SIGTERM, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var env []string
			if strings.Contains(name, "color") {
				env = append(env, "NO_COLOR=1")
			}
			m := newTerminal(t, 100, 30, env...)
			before, state := m.screen(), m.state()
			command := binary + " top " + test.args
			m.types(command)
			m.presses("Enter")
			m.shows("the connections", "zombie ", "q quit", "running for")
			if m.state() == state {
				t.Errorf("it draws, and the terminal is as before: %s", state)
			}
			colours := regexp.MustCompile("\x1b\\[[0-9;]*(3[0-7]|9[0-7]|38)[;m]").MatchString(m.tmux("capture-pane", "-p", "-e"))
			if colours != (env == nil) {
				t.Errorf("colours: %v, with %v", colours, env)
			}
			pid, inner := m.tops()
			if test.inner {
				pid = inner
			}
			if err := syscall.Kill(pid, test.signal); err != nil {
				t.Fatal(err)
			}
			if pid != inner && test.signal == syscall.SIGKILL {
				// The shell may write its prompt before the other process shows the
				// shell's screen again, and so to a screen that is gone.
				m.ended(inner)
				m.presses("Enter")
			}
			if test.says == nil {
				m.restored(before, command, state)
			} else {
				m.restoredAnd(before, command, state, test.says)
			}
			m.ended(pid)
			m.ended(inner)
		})
	}
}

func TestTopIsSuspendedAndGoesOn(t *testing.T) {
	t.Parallel()
	n, a := topTraffic(t)
	m := newTerminal(t, 90, 24)
	m.types("set -m")
	m.presses("Enter")
	m.shows("the shell", "set -m\n"+prompt)
	state := m.state()
	m.types(fmt.Sprintf("%s top --url %s --netns %d", binary, a.url, n.Client.Inode()))
	m.presses("Enter")
	m.shows("the connections", "\nzombie ", "5 connections")
	m.presses("C-z")
	m.shows("the shell again", "topped", prompt) // Stopped, with or without its capital
	if now := m.state(); now != state {
		t.Errorf("suspended, the terminal was %s, and is %s", state, now)
	}
	m.types("fg")
	m.presses("Enter")
	m.shows("the connections again", "\nzombie ", "5 connections")
	m.presses("q")
	m.lacks("it ends", "5 connections")
	if now := m.state(); now != state {
		t.Errorf("the terminal was %s, and is %s", state, now)
	}
}

func TestTopOnWhatItCannotDrawOn(t *testing.T) {
	t.Parallel()
	m := newTerminal(t, 120, 24)
	for _, env := range []string{"TERM=dumb", "TERM="} {
		m.types("clear; " + env + " " + binary + " top; echo status $?")
		m.presses("Enter")
		m.shows(env, `halfopen: top cannot draw on this terminal (TERM is "`+strings.TrimPrefix(env, "TERM=")+`"): use halfopen list`, "status 1")
	}
	m.types("clear; " + binary + " top | cat; " + binary + " top </dev/null; echo done")
	m.presses("Enter")
	screen := m.shows("no terminal", "\ndone")
	if strings.Count(screen, "halfopen: top needs a terminal") != 2 {
		t.Errorf("it does not say so twice:\n%s", screen)
	}
}
