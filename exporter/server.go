// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/prometheus/exporter-toolkit/web"
	"golang.org/x/sync/errgroup"
)

const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 30 * time.Second
	// writeTimeout bounds a whole answer. A longer answer sets its own deadline
	// (http.ResponseController).
	writeTimeout = time.Minute
	// idleTimeout keeps connections open between scrapes that are at most 30 s apart.
	idleTimeout = 35 * time.Second
	// shutdownGrace is how long requests may go on after the context ends.
	shutdownGrace = 5 * time.Second

	// The limits of a connection: the request's header, and HTTP/2.
	maxHeaderBytes = 16 << 10
	maxStreams     = 32
	maxFrameBytes  = 16 << 10
	maxUploadBytes = 64 << 10
)

// ErrAddress is the error of an address that cannot be parsed.
var ErrAddress = errors.New("is not an address and a port, such as :9839 or [::1]:9839")

// Listen opens the listeners that the flags ask for, after it has checked the web
// config file. A broken file and an address that is not available are errors, each one
// line that says what to do.
func Listen(flags *web.FlagConfig) ([]net.Listener, error) {
	if path := flags.WebConfigFile; path != nil {
		if err := web.Validate(*path); err != nil {
			return nil, fmt.Errorf("web config %s: %s: correct it or do without --web.config.file", *path, oneLine(err.Error()))
		}
	}
	if flags.WebSystemdSocket != nil && *flags.WebSystemdSocket {
		return systemdListeners()
	}
	if flags.WebListenAddresses == nil || len(*flags.WebListenAddresses) == 0 {
		return nil, errors.New("no address to listen on: give one with --web.listen-address")
	}
	for _, address := range *flags.WebListenAddresses {
		_, port, err := net.SplitHostPort(address)
		if err == nil {
			_, err = net.LookupPort("tcp", port)
		}
		if err != nil || port == "" { // an empty port would be any port
			return nil, fmt.Errorf("--web.listen-address: %q %w", address, ErrAddress)
		}
	}
	var listeners []net.Listener
	for _, address := range *flags.WebListenAddresses {
		l, err := net.Listen("tcp", address)
		if err != nil {
			closeAll(listeners)
			return nil, listenError(address, err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

func systemdListeners() ([]net.Listener, error) {
	passed, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take systemd's sockets: %w", err)
	}
	var listeners []net.Listener
	for _, l := range passed {
		if l != nil { // nil if the descriptor is not a stream socket
			listeners = append(listeners, l)
		}
	}
	if len(listeners) == 0 {
		return nil, errors.New("systemd passed no socket: start it from a .socket unit or do without --web.systemd-socket")
	}
	return listeners, nil
}

func listenError(address string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("listen on %s: %w: stop what listens there or choose another with --web.listen-address", address, syscall.EADDRINUSE)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err // without the address, which we add
	}
	return fmt.Errorf("listen on %s: %w: choose another with --web.listen-address", address, err)
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

// Serve serves the handler on the listeners until the context ends, and then returns
// nil. It uses TLS and basic auth as the web config file says, but neither on a Unix
// socket that not every user can connect to. Requests over such sockets have a
// [RequestPeer]. The limit bounds the connections of all listeners together. Serve
// closes the listeners.
func Serve(ctx context.Context, listeners []net.Listener, handler http.Handler, flags *web.FlagConfig, limit *ConnLimit, logger *slog.Logger) error {
	defer closeAll(listeners)
	plain := &web.FlagConfig{WebConfigFile: new(string)} // of no config file: web.Serve needs one
	if flags.WebConfigFile == nil {
		flags = plain
	}
	errorLog := log.New(serverLog{newMinuteLog(logger, "HTTP connections failed")}, "", 0)
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		// One server each, since web.Serve changes it.
		server := &http.Server{
			Handler:           logPeers(handler, logger),
			ConnContext:       withPeer,
			ReadHeaderTimeout: readHeaderTimeout,
			ReadTimeout:       readTimeout,
			WriteTimeout:      writeTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeaderBytes,
			HTTP2: &http.HTTP2Config{
				MaxConcurrentStreams:          maxStreams,
				MaxReadFrameSize:              maxFrameBytes,
				MaxReceiveBufferPerConnection: maxUploadBytes,
				MaxReceiveBufferPerStream:     maxUploadBytes,
			},
			ConnState: limit.connState,
			ErrorLog:  errorLog,
		}
		config := flags
		if guardedByMode(l) {
			config = plain
		}
		g.Go(func() error {
			if err := web.Serve(limit.listener(l), server, config, logger); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve on %s: %w", l.Addr(), err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
			defer cancel()
			if err := server.Shutdown(grace); err != nil {
				logger.Warn("Requests were cut off at shutdown", "err", err)
				server.Close()
			}
			return nil
		})
	}
	return g.Wait()
}
