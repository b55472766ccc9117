// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/halfopen/halfopen/exporter"
	"github.com/halfopen/halfopen/exporter/api"
)

// A place is the value of --url.
type place struct {
	url  *url.URL // nil: --url was not given, or is none
	none bool
}

// here reports whether an agent at this place runs on this machine, as far as the URL shows.
func (p *place) here() bool {
	if p.url == nil || p.url.Scheme == "unix" || p.url.Hostname() == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(p.url.Hostname())
	return err == nil && addr.Unmap().IsLoopback()
}

// peer is the agent that a command asks: --url and --web.client-config.
type peer struct {
	place  place
	config string
}

// flags adds both flags. verb begins the help, as in "Ask".
func (p *peer) flags(cmd *kingpin.CmdClause, verb string) {
	cmd.Flag("url", verb+" the agent at this URL, such as http://127.0.0.1:9839 or unix:///run/agent.sock; none: ask no agent, and read the kernel of this machine. Without --url it is the agent of this machine, if one listens on "+
		exporter.SocketPath+", unless another flag asks for what no agent does.").
		PlaceHolder("URL").SetValue(&value[place]{flag: "url", parse: parsePlace, into: &p.place})
	cmd.Flag("web.client-config", "For --url: file with the password, certificate and so on that the agent wants, as Prometheus's http_config, such as basic_auth with username and password_file, or tls_config with ca_file, cert_file and key_file.").
		PlaceHolder("FILE").StringVar(&p.config)
}

func parsePlace(s string) (place, error) {
	if s == "none" {
		return place{none: true}, nil
	}
	u, err := url.Parse(s)
	switch {
	case err == nil && u.User != nil, strings.Contains(s, "@") && (err != nil || u.Host == "" && u.Scheme != "unix"):
		return place{}, errors.New("everybody on this machine can read a command line: leave user and password out, and name a file that has them with --web.client-config")
	case err == nil && u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path):
		return place{url: u}, nil
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return place{}, fmt.Errorf("%q is neither none nor a URL such as http://127.0.0.1:9839", s)
	}
	return place{url: u}, nil
}

// agentSaying returns the agent as [peer.agent] does. The agent's client writes to stderr
// when it has to wait because the agent is busy.
func (p *peer) agentSaying(ctx context.Context, own error, stderr io.Writer) (*api.Client, error) {
	c, err := p.agent(ctx, own)
	if c != nil {
		c.OnBusy = func(wait time.Duration) {
			fmt.Fprintf(stderr, "halfopen: %s is busy: asking again in %s\n", c, setting(wait))
		}
	}
	return c, err
}

// agent returns the agent to ask, nil to read the kernel ourselves. own is an error if
// a flag asks for something that no agent does, else nil.
func (p *peer) agent(ctx context.Context, own error) (*api.Client, error) {
	u := p.place.url
	switch {
	case p.config != "" && (u == nil || u.Scheme == "unix"):
		return nil, usagef("--web.client-config is for an agent that --url names, with http:// or https://")
	case u != nil && own != nil:
		return nil, own
	case u != nil && u.Scheme == "unix":
		return api.NewSocketClient(u.Path, new(net.Dialer).DialContext), nil
	case u != nil:
		return api.NewClient(u, p.config)
	case p.place.none, own != nil:
		return nil, nil
	}
	return machineAgent(ctx, exporter.SocketPath, api.GreetingTimeout)
}

const withoutAgent = "look without it with --url=none"

// errForeignSocket is the error of a socket that another user than root may have made.
var errForeignSocket = errors.New("not asked")

// machineAgent returns the agent that listens on the machine's own socket, nil if none
// does. It trusts the socket only if no other user than root can have made it. The
// agent has to answer within the timeout.
func machineAgent(ctx context.Context, path string, timeout time.Duration) (*api.Client, error) {
	if err := checkSocketDir(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	c := api.NewSocketClient(path, dialRoot)
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	status, err := c.Health(limited)
	switch {
	case err == nil && status == http.StatusOK:
		return c, nil
	case err == nil && (status == http.StatusUnauthorized || status == http.StatusBadRequest):
		return nil, fmt.Errorf("the agent of this machine wants a password or TLS on %s, since every user may connect there: have systemd make it with SocketMode=0660, or name the agent with --url", path)
	case err == nil:
		return nil, c.NotAnAgent()
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, errForeignSocket):
		return nil, errors.Unwrap(err) // without the URL
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return nil, fmt.Errorf("ask the agent of this machine on %s: permission denied: use sudo, join the group %s, or name an agent with --url", path, exporter.SocketGroup)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.EAGAIN): // EAGAIN: its backlog is full
		return nil, fmt.Errorf("the agent of this machine has not answered on %s within %s: restart it, or %s", path, setting(timeout), withoutAgent)
	}
	return nil, nil // no process listens, or it has stopped
}

// dialRoot connects to a socket on which root began to listen. For an agent that
// systemd starts, systemd did.
func dialRoot(ctx context.Context, network, path string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, path)
	if err != nil {
		return nil, err
	}
	if p, ok := exporter.ConnPeer(c); !ok || p.UID != 0 {
		c.Close()
		return nil, fmt.Errorf("%s is listened on by user %d, not by root: %w: use --url=none, or name the agent with --url", path, p.UID, errForeignSocket)
	}
	return c, nil
}

// checkSocketDir returns an error unless root alone can put a socket into a directory.
func checkSocketDir(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	var why string
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		why = "is not a directory"
	case !ok || st.Uid != 0:
		why = "does not belong to root"
	case info.Mode().Perm()&0o022 != 0:
		why = "can be written to by others than root"
	default:
		return nil
	}
	return fmt.Errorf("%s %s, so any user may listen there: %w: use --url=none, or name the agent with --url", dir, why, errForeignSocket)
}
