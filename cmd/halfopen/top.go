// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/alecthomas/kingpin/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/helper"
	"github.com/halfopen/halfopen/internal/sandbox"
)

// top has the flags of the command.
type top struct {
	peer
	selection
	thresholds
}

func topFlags(cmd *kingpin.CmdClause) action {
	var t top
	t.selection.addFilters(cmd, func(f *api.Filter[collector.Query]) bool { return !f.Switch })
	t.peer.flags(cmd, "Watch through")
	t.thresholds.verdictFlags(cmd)
	return t.run
}

func (t *top) run(ctx context.Context, stdout, stderr io.Writer) error {
	if t.place.url != nil && t.thresholds.own() != nil {
		return errAgentDecides
	}
	terminal, err := screenOf(os.Stdin, stdout)
	if err != nil {
		return err
	}
	if os.Getenv(guardedEnv) == "" {
		return guard(ctx, terminal, stderr)
	}
	agent, err := t.peer.agent(ctx, t.thresholds.own())
	switch {
	case err != nil:
		return err
	case agent != nil:
		return t.show(ctx, asked{agent}, terminal)
	}
	h, err := helper.Start("")
	if err != nil {
		return err
	}
	defer h.Close()
	k, err := t.thresholds.load(t.thresholds.eventsFrom(), h)
	if err != nil {
		return err
	}
	defer k.Close()
	opts := t.thresholds.options(nil)
	opts.Privileged = h
	c := collector.New(k, opts)
	_ = sandbox.Enter(sandbox.Terminal(sandbox.Agent())) // as far as possible here; halfopen doctor prints the steps that fail
	src := self{here{c}, time.Now()}
	ctx, stop := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.Run(ctx) })
	g.Go(func() error { return h.Wait(ctx) })
	g.Go(func() error {
		defer stop()
		return t.show(ctx, src, terminal)
	})
	return g.Wait()
}

// screenOf returns the terminal to draw on. It returns an error if the input or the output
// is not a terminal, or if TERM says that top cannot draw on it.
func screenOf(stdin *os.File, stdout io.Writer) (*os.File, error) {
	f, ok := stdout.(*os.File)
	switch {
	case !ok || !term.IsTerminal(int(f.Fd())) || !term.IsTerminal(int(stdin.Fd())):
		return nil, errors.New("top needs a terminal for its input and its output: use halfopen list, or halfopen trace, to write into a file or a pipe")
	case os.Getenv("TERM") == "" || os.Getenv("TERM") == "dumb":
		return nil, fmt.Errorf("top cannot draw on this terminal (TERM is %q): use halfopen list, or set TERM to the type of the terminal", os.Getenv("TERM"))
	}
	return f, nil
}

// show draws until the user quits or the context ends, and then returns nil.
func (t *top) show(ctx context.Context, src source, terminal *os.File) error {
	first, err := src.look(ctx, t.selection.Query)
	if err != nil {
		return err
	}
	settings, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		return fmt.Errorf("read the terminal's settings: %w", err)
	}
	// The first signal ends this process in order; later signals must not interrupt that.
	// If guard is killed, its threads end one after another. Each time the thread that is
	// the parent ends, the kernel makes another one the parent and sends SIGTERM again.
	more := make(chan os.Signal, 1)
	signal.Notify(more, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(more)
	defer restoreSettings(terminal, settings)
	m := newScreen(ctx, src, paletteFor(terminal), filterText(&t.selection.Query))
	m = m.began(first)
	// bubbletea need not catch panics, and cannot catch those of other goroutines. guard
	// restores the terminal after all of them.
	p := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(os.Stdin), tea.WithOutput(terminal),
		tea.WithoutSignalHandler(), tea.WithoutCatchPanics(), tea.WithFPS(30))
	if _, err := p.Run(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// restoreSettings restores the terminal's settings if they are still those for drawing. If
// guard was killed, the shell takes the terminal back, and this process is in the background.
// There a change of the settings fails with EIO unless the process ignores SIGTTOU
// (__tty_check_change, drivers/tty/tty_jobctrl.c); bubbletea's own attempt has failed with
// it. If the shell has already changed the settings, restoreSettings leaves them alone: a
// shell enables signals (ISIG) or output processing (OPOST), which drawing disables.
func restoreSettings(terminal *os.File, settings *unix.Termios) {
	now, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil || now.Lflag&unix.ISIG != 0 || now.Oflag&unix.OPOST != 0 {
		return
	}
	signal.Ignore(syscall.SIGTTOU)
	_ = unix.IoctlSetTermios(int(terminal.Fd()), unix.TCSETS, settings)
}

// guardedEnv is the environment variable that guard sets for the second process. The second
// process draws, and does not call guard again.
const guardedEnv = "HALFOPEN_TOP_GUARDED"

// resetTerminal undoes what bubbletea sets in a terminal: how it reports keys, pasting and the
// mouse, the alternate screen, the hidden cursor, and lines that do not wrap. The modes of the
// keys come first, because kitty has separate ones for each of its two screens.
const resetTerminal = "\x1b[<u\x1b[>4m\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l" +
	"\x1b[?2026l\x1b[?1049l\x1b[?25h\x1b[0 q\x1b[?7h\x1b[0m"

// guard runs the same command in a second process, and restores the terminal however
// that process ends. A process cannot restore it itself after SIGKILL or a panic in
// another goroutine.
func guard(ctx context.Context, terminal *os.File, stderr io.Writer) error {
	before, err := term.GetState(int(terminal.Fd()))
	if err != nil {
		return fmt.Errorf("read the terminal's settings: %w", err)
	}
	path, err := os.Executable()
	if err != nil {
		return err
	}
	var output bytes.Buffer // its stderr, kept off the screen
	cmd := exec.Command(path, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), guardedEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, terminal, &output
	// If this process dies, the kernel sends SIGTERM to the second process, which then ends
	// in order. The kernel sends it when the thread ends that started the second process
	// (prctl(2)), so this goroutine keeps its thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(hangup)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-ended:
			return
		case <-ctx.Done():
		case <-hangup:
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() == exitFailed:
		_, _ = output.WriteTo(stderr)
		return errReported
	}
	_ = term.Restore(int(terminal.Fd()), before)
	_, _ = io.WriteString(terminal, resetTerminal)
	if output.Len() > 0 {
		_, _ = output.WriteTo(stderr)
		err = fmt.Errorf("%w; please report this and the text above", err)
	}
	return fmt.Errorf("top was ended: %w", err)
}
