// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"golang.org/x/sync/errgroup"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/exporter/api"
	"github.com/halfopen/halfopen/internal/escape"
	"github.com/halfopen/halfopen/internal/lab"
)

// The client of the demo uses keepalive with short times. By the default thresholds the
// connection is a zombie after 10s; the kernel ends it after 18s.
const (
	demoPort     = 5432
	demoIdle     = 2 * time.Second
	demoInterval = 2 * time.Second
	demoProbes   = 8
	// demoWidth is the greatest width of the output, in columns.
	demoWidth = 100
	// demoTimeout is how long to wait for the end of the connection.
	demoTimeout = 40 * time.Second
)

func demoFlags(cmd *kingpin.CmdClause) action {
	return func(ctx context.Context, stdout, _ io.Writer) error {
		d := &demo{w: stdout, palette: paletteFor(stdout)}
		ctx, d.stop = context.WithCancel(ctx)
		defer d.stop()
		err := d.run(ctx)
		if d.err != nil {
			return d.err // the failed print ended the demo
		}
		return err
	}
}

// demo is one run of the demo.
type demo struct {
	w       io.Writer
	palette palette
	began   time.Time
	cut     time.Time // when the cable was cut
	err     error     // of the first failed print
	stop    func()    // ends the demo after a failed print

	lab       *lab.Lab
	collector *collector.Collector
	client    *net.TCPConn
	server    *net.TCPConn
}

func (d *demo) run(ctx context.Context) (err error) {
	var t thresholds // the defaults of all flags
	k, err := t.load(1, nil)
	if err != nil {
		return err
	}
	defer k.Close()
	if d.lab, err = lab.New(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.lab.Close()) }()

	d.collector = collector.New(k, t.options(nil))
	g, gctx := errgroup.WithContext(ctx)
	watching, stop := context.WithCancel(gctx)
	g.Go(func() error { return d.collector.Run(watching) })
	g.Go(func() error {
		defer stop()
		return d.show(gctx)
	})
	return g.Wait()
}

// show runs the demo and prints it.
func (d *demo) show(ctx context.Context) error {
	if err := d.connect(ctx); err != nil {
		return err
	}
	defer d.disconnect()
	d.print("A TCP connection whose peer goes silent, and how halfopen finds it. The demo runs in two\n" +
		"private network namespaces, and leaves the rest of this machine alone.\n\n")
	healthy, err := d.readEnds(ctx)
	if err != nil {
		return err
	}
	// On a node with very many connections readEnds takes long. So the ends greet each other
	// again: the times of keepalive and of the demo begin now.
	if err := d.greet(); err != nil {
		return err
	}
	d.began = time.Now()
	d.say(d.began, "", "Client and server are connected, and have greeted each other.")
	d.more("The client uses keepalive: a probe after %s, then every %s, and no more than %d.", setting(demoIdle), setting(demoInterval), demoProbes)
	d.more("(Linux's defaults are 2h, 75s and 9.) The server does not use it.")
	d.list("halfopen sees two healthy connections, one for each end:", healthy)

	if err := sleep(ctx, 1500*time.Millisecond); err != nil {
		return err
	}
	sub := d.collector.Subscribe(traceBuffer) // not earlier: notices of other connections could fill the buffer
	defer sub.Close()
	restore, err := d.lab.Client.Drop(lab.Rule{Port: demoPort, Direction: lab.Both, Percent: 100})
	if err != nil {
		return err
	}
	defer func() { _ = restore() }() // before disconnect, so that the ends can close in order
	d.cut = time.Now()
	d.say(d.cut, bold, "The cable is cut: packets vanish both ways, and neither end notices.")
	if err := d.watch(ctx, sub.C, sub.Dropped); err != nil {
		return err
	}
	d.more("The kernel ended it, after %d probes. The server's end lives on: without keepalive", demoProbes)
	d.more("it never learns that the client is gone.")
	d.print("\n" +
		"Look at this node     sudo halfopen list\n" +
		"Watch it for good     sudo halfopen agent, then http://" + defaultAddress + "\n" +
		"Alert on              halfopen_tcp_connections{verdict=\"zombie\"} > 0\n")
	return nil
}

// connect makes the connection, from the client's namespace to the server's.
func (d *demo) connect(ctx context.Context) error {
	addr := netip.AddrPortFrom(d.lab.Server.Addr4(), demoPort)
	ln, err := d.lab.Server.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer ln.Close()
	if d.client, err = d.lab.Client.Dial(ctx, addr); err != nil {
		return cmp.Or(ctx.Err(), err) // for a context that ended, net returns its own error
	}
	if d.server, err = ln.AcceptTCP(); err != nil {
		return errors.Join(err, d.client.Close())
	}
	if err := errors.Join(d.greet(), lab.SetKeepalive(d.client, demoIdle, demoInterval, demoProbes)); err != nil {
		d.disconnect()
		return err
	}
	return nil
}

// greet sends data both ways. The wait for the first keepalive probe begins then.
func (d *demo) greet() error {
	return errors.Join(sendHello(d.client, d.server), sendHello(d.server, d.client))
}

// sendHello sends data from one end to the other, and waits until it has arrived.
func sendHello(from, to net.Conn) error {
	const hello = "hello"
	if _, err := io.WriteString(from, hello); err != nil {
		return err
	}
	_, err := io.ReadFull(to, make([]byte, len(hello)))
	return err
}

func (d *demo) disconnect() {
	d.client.Close()
	d.server.Close()
}

// watch prints what happens to the connection until it ends. dropped returns how many
// notices were lost, which watch prints as well.
func (d *demo) watch(ctx context.Context, notices <-chan conn.Notice, dropped func() uint64) error {
	timeout := time.NewTimer(demoTimeout)
	defer timeout.Stop()
	var told uint64
	for {
		if now := dropped(); now > told {
			d.more("%s of this node not shown: they came faster than they could be.", plural(int(now-told), "event"))
			told = now
		}
		var n conn.Notice
		select {
		case n = <-notices:
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout.C:
			if told = dropped(); told > 0 {
				return fmt.Errorf("no end of the connection was seen within %s, but %s of this node were lost, which can have had it: try again when fewer connections of this node are in trouble", demoTimeout, plural(int(told), "event"))
			}
			return fmt.Errorf("the connection did not end within %s: please report this with the output of halfopen doctor", demoTimeout)
		}
		if n.Connection.Netns != d.lab.Client.Inode() || n.At.Before(d.cut) {
			continue // the server answered the probes before the cut
		}
		switch {
		case n.Kind == conn.NoticeSolicitation:
			d.say(n.At, "", "%s", words(new(api.NewNotice(&n))))
		case n.Kind == conn.NoticeDeath:
			d.say(n.At, bold, "%s", words(new(api.NewNotice(&n))))
			return nil
		case n.Connection.Verdict == conn.Zombie:
			d.say(n.At, red, "%s", words(new(api.NewNotice(&n))))
			if f := n.Connection.GivesUp; f.Ever() {
				d.more("The kernel will not notice before %.1fs.", f.At.Sub(d.began).Seconds())
			}
			if err := d.contrast(&n.Connection); err != nil {
				return err
			}
		case n.Kind == conn.NoticeVerdict:
			d.say(n.At, paintVerdict(n.Connection.Verdict.String()), "%s", words(new(api.NewNotice(&n))))
		}
	}
}

// contrast prints the zombie as ss shows it, if ss is installed, and as halfopen does.
func (d *demo) contrast(zombie *conn.Connection) error {
	if _, err := exec.LookPath("ss"); err == nil {
		out, err := d.lab.Client.Output("ss", "-Htn")
		if err != nil {
			return err
		}
		d.print("\nss still sees a healthy connection:\n\n" + indent(escape.Text(strings.TrimSpace(string(out)))+"\n"))
	}
	d.list("halfopen sees the zombie:", []api.Connection{api.NewConnection(zombie)})
	return nil
}

// readEnds returns the two ends of the connection.
func (d *demo) readEnds(ctx context.Context) ([]api.Connection, error) {
	_, ends, err := here{d.collector}.connections(ctx, collector.Query{
		Ports: []uint16{demoPort}, Netns: []uint32{d.lab.Client.Inode(), d.lab.Server.Inode()},
	})
	return ends, err
}

// list prints the table of `halfopen list` without the owner: this process owns both ends.
func (d *demo) list(title string, connections []api.Connection) {
	t := connectionTable(connections, time.Now(), false)
	t.columns = slices.DeleteFunc(t.columns, func(c column) bool { return c.title == ownerTitle || c.title == runsInTitle })
	t.fit(min(roomFor(d.w), demoWidth) - len(margin))
	var b strings.Builder
	_ = t.write(&b, d.palette)
	d.print("\n" + title + "\n\n" + indent(b.String()) + "\n")
}

// say prints an event with its time.
func (d *demo) say(at time.Time, s style, format string, args ...any) {
	elapsed := max(0, at.Sub(d.began))
	d.print(fmt.Sprintf("%5.1fs  %s\n", elapsed.Seconds(), d.palette.paint(s, fmt.Sprintf(format, args...))))
}

// more prints another line of the same event.
func (d *demo) more(format string, args ...any) {
	d.print("        " + fmt.Sprintf(format, args...) + "\n")
}

func (d *demo) print(s string) {
	if _, err := io.WriteString(d.w, s); err != nil && d.err == nil {
		d.err = err
		d.stop()
	}
}

const margin = "  "

func indent(lines string) string {
	var b strings.Builder
	for l := range strings.Lines(lines) {
		b.WriteString(margin + l)
	}
	return b.String()
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
