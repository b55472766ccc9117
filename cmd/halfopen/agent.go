// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"
	logflag "github.com/prometheus/common/promslog/flag"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"
	"github.com/prometheus/exporter-toolkit/web/kingpinflag"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/halfopen/halfopen/collector"
	"github.com/halfopen/halfopen/collector/conn"
	"github.com/halfopen/halfopen/collector/recording"
	"github.com/halfopen/halfopen/exporter"
	"github.com/halfopen/halfopen/internal/escape"
	"github.com/halfopen/halfopen/internal/helper"
)

// defaultAddress is where the agent listens by default: reachable from this node only.
const defaultAddress = "127.0.0.1:9839"

// agent has the flags of the command.
type agent struct {
	thresholds
	web          *web.FlagConfig
	allowedHosts []string
	lookupCPU    float64 // of one core
	socket       string  // "": none
	record       string  // a file for the facts; "": none
	privileges   string
	log          promslog.Config
	excluded     []string // owners, or patterns of them
}

func agentFlags(cmd *kingpin.CmdClause) action {
	var a agent
	a.thresholds.verdictFlags(cmd)
	a.thresholds.censusFlags(cmd)
	// For tests of the tracker after lost events.
	cmd.Flag("debug.events-bytes", "Size of the ring buffer of events.").Hidden().Uint32Var(&a.eventsBytes)
	cmd.Flag("debug.record", "Record in this file, up to 1 GiB, what the kernel says about connections in trouble, to be replayed elsewhere by halfopen replay.").
		PlaceHolder("FILE").SetValue(&value[string]{flag: "debug.record", parse: parseFile, into: &a.record})
	a.web = kingpinflag.AddFlags(cmd, defaultAddress)
	cmd.GetFlag("web.listen-address").Help("Where to listen for HTTP, such as :9839 or [::1]:9839. Repeatable.") // ours does not mention vsock
	cmd.Flag("web.socket", "Unix socket on which list, explain, probe, top and trace ask the agent of this machine; root and the group "+exporter.SocketGroup+" may connect. none: no socket.").
		Default(exporter.SocketPath).PlaceHolder("PATH").SetValue(&value[string]{flag: "web.socket", parse: parseSocket, into: &a.socket})
	cmd.Flag("web.allowed-host", "Another host name of this agent that requests may use, such as the name of a proxy, besides its addresses, localhost and the node's name. Repeatable.").
		PlaceHolder("NAME").SetValue(&values[string]{"web.allowed-host", exporter.ParseHostName, &a.allowedHosts})
	cmd.Flag("web.lookup-cpu", "Share of one core that the look-ups of HTTP clients may take: connections, groups and deaths of the API. One client gets half of it. The users of --web.socket have as much again. What is beyond has to wait, or is refused.").
		Default("25%").SetValue(&value[float64]{flag: "web.lookup-cpu", parse: parsePercent, into: &a.lookupCPU})
	cmd.Flag("privileges", "What to do with privileges that nothing needs any more once the programs are loaded: drop, or keep.").
		Default(dropPrivileges).SetValue(&value[string]{flag: "privileges", parse: oneOf(dropPrivileges, keepPrivileges), into: &a.privileges})
	cmd.Flag("alert.exclude-owner", "An owner, or a pattern such as chaos-*, whose zombies, stuck, blocked and unread connections raise no shipped alert: its series have excluded=\"true\". Repeatable.").
		PlaceHolder("NAME").SetValue(&values[string]{"alert.exclude-owner", conn.ParseOwnerGlob, &a.excluded})
	a.log = promslog.Config{Level: promslog.NewLevel(), Format: promslog.NewFormat()}
	logFlag := func(name, help, def string, into kingpin.Value) {
		set := func(s string) (string, error) { return s, into.Set(s) }
		cmd.Flag(name, help).Default(def).SetValue(&value[string]{flag: name, parse: set, into: new(string)})
	}
	logFlag(logflag.LevelFlagName, logflag.LevelFlagHelp, "info", a.log.Level)
	logFlag(logflag.FormatFlagName, logflag.FormatFlagHelp, "logfmt", a.log.Format)
	return a.run
}

// parseFile parses the name of a file.
func parseFile(s string) (string, error) {
	if s == "" {
		return "", errors.New("the name is empty")
	}
	return s, nil
}

// parseSocket parses the path of a Unix socket. "none" is "".
func parseSocket(s string) (string, error) {
	switch {
	case s == "none":
		return "", nil
	case !filepath.IsAbs(s) || filepath.Clean(s) != s || filepath.Dir(s) == "/":
		return "", fmt.Errorf("%q is neither none nor a path such as %s", s, exporter.SocketPath)
	case len(s) > maxSocketPath:
		return "", fmt.Errorf("%q is longer than the %d bytes that the kernel allows", s, maxSocketPath)
	}
	return s, nil
}

// maxSocketPath is the longest path of a Unix socket in bytes (sun_path).
const maxSocketPath = len(unix.RawSockaddrUnix{}.Path) - 1

func (a *agent) run(ctx context.Context, _, stderr io.Writer) error {
	a.log.Writer = escape.Writer{W: stderr}
	logger := promslog.New(&a.log)

	// Wrong flags and addresses are found before the programs are loaded.
	listeners, err := exporter.Listen(a.web)
	switch {
	case errors.Is(err, exporter.ErrAddress):
		return usageError{err}
	case err != nil:
		return err
	}
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	limitMemory(0) // to load the programs takes memory, too
	var h *helper.Helper
	if a.privileges == dropPrivileges {
		if h, err = helper.Start(a.socket); err != nil {
			return fmt.Errorf("%w, or keep all privileges with --privileges=keep", err)
		}
		defer h.Close()
	}
	k, err := a.thresholds.load(a.thresholds.eventsFrom(), h)
	if err != nil {
		return err
	}
	defer k.Close()
	maps := k.MapBytes()
	group, heap := limitMemory(maps)
	trimMemory()
	if a.socket != "" && !exporter.HasSocket(listeners) {
		var remove func(device, inode uint64) error
		if h != nil {
			remove = h.RemoveSocket
		}
		socket, err := exporter.ListenSocket(a.socket, remove, logger)
		if err != nil {
			logger.Warn("Running without a socket: list, explain, probe, top and trace do not find this agent without --url", "err", err)
		} else {
			listeners = append(listeners, socket)
		}
	}
	opts := a.thresholds.options(logger)
	if a.record != "" {
		recorder, err := recording.Create(a.record, recording.Header{
			Halfopen: version.Version, Kernel: kernelRelease(), MonotonicZero: collector.MonotonicZero(),
			Rules: recording.NewRules(new(opts.Rules(k.HZ()))),
		}, logger)
		if err != nil {
			return fmt.Errorf("--debug.record: %w", err)
		}
		defer recorder.Close()
		opts.Record = recorder.Record
	}
	opts.ExcludeOwners = a.excluded
	if h != nil {
		opts.Privileged = h
	}
	c := collector.New(k, opts)
	recoverAsked(ctx, here{c}, logger)
	live := exporter.NewLive(c, logger)
	guard := exporter.NewGuard(*a.web.WebListenAddresses, a.allowedHosts)
	connections := exporter.NewConnLimit(logger)
	handler := guard.Wrap(exporter.NewHandler(c, live, exporter.NewLookups(a.lookupCPU), logger, guard, connections))
	logger.Info("Starting halfopen", "version", version.Version, "revision", version.GetRevision(),
		"kernel", kernelRelease(), "address", strings.Join(*a.web.WebListenAddresses, ","))
	logMemory(logger, maps, group, heap)
	g, ctx := errgroup.WithContext(ctx)
	if h != nil {
		files, err := exporter.WebFiles(a.web)
		if err != nil {
			return err
		}
		enter(agentPolicy(files), logger)
		g.Go(func() error { return h.Wait(ctx) })
	}
	g.Go(func() error { return c.Run(ctx) })
	g.Go(func() error {
		live.Run(ctx)
		return nil
	})
	g.Go(func() error { return exporter.Serve(ctx, listeners, handler, a.web, connections, logger) })
	if err := g.Wait(); err != nil {
		return err
	}
	logger.Info("Stopped halfopen")
	return nil
}

// kernelRelease returns the release of the kernel, as `uname -r` prints it.
func kernelRelease() string {
	var uts unix.Utsname
	if unix.Uname(&uts) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(uts.Release[:])
}
